"""The two tables of a run: ``clusters.parquet`` has one row per image, ``prototypes.parquet`` one row per cluster.

A cluster has the same index in the model and in all tables and pictures. The tables are self-describing: each field
has a ``doc`` in its metadata, and the schema's metadata contain the schema version and the name of the loss column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import ClusteringConfig, Method
from pipeline.errors import PipelineError
from pipeline.paths import CrawlPaths
from pipeline.records import RECORD_FIELDS, Crawl, Pixels
from pipeline.reporting.pixels import png, to_image
from pipeline.storage import Storage

SCHEMA_VERSION = 3
"""Version of the schemas of both tables."""

LOSS_COLUMNS: dict[Method, str] = {
    "dti-gmm": "negative_log_likelihood",
    "ti-gmm": "negative_log_likelihood",
    "gmm": "negative_log_likelihood",
    "dti-kmeans": "squared_error",
    "ti-kmeans": "squared_error",
    "kmeans": "squared_error",
}
"""Name of the loss column for each method."""
LOSS_NAMES = {"negative_log_likelihood": "negative log-likelihood", "squared_error": "squared error"}
"""Readable names of the loss columns."""
_LOSS_DOCS = {
    "negative_log_likelihood": "negative log-likelihood of the image under the mixture model, in nats; lower is better",
    "squared_error": "squared error per pixel and channel between image and transformed prototype; lower is better",
}
_TRANSFORM = "transform_"
SOURCES = ("source_uri", "file_name", "shortcode", "caption", "hashtags", "source_url")
"""Columns of ``clusters.parquet`` that identify a photo or quote its post; null in reports without examples."""
_DESCRIPTIVE = ("source_uri", "file_name", "shortcode", "caption", "taken_at", "hashtags", "source_url", "label")


def clusters_schema(config: ClusteringConfig) -> pa.Schema:
    """Return the schema of ``clusters.parquet`` for the method and transformations of `config`."""
    loss = LOSS_COLUMNS[config.method]
    record_fields = {field.name: field for field in RECORD_FIELDS}
    fields = [
        _field(
            "image_id",
            pa.string(),
            "key of the image in its shard, derived from its content, so it is the same in every crawl; if duplicates "
            "are kept, also derived from the place of the file in the source",
        ),
        *(record_fields[name] for name in _DESCRIPTIVE),
        _field("crawl_id", pa.string(), "crawl that contains the image"),
        _field("shard", pa.int32(), "index of the shard of the crawl that contains the pixels"),
        _field("cluster", pa.int32(), "cluster of the image: index of the prototype with the largest posterior"),
        _field(loss, pa.float32(), _LOSS_DOCS[loss]),
        _field("posterior", pa.float32(), "posterior probability of the assigned prototype, in [0, 1]"),
        _field("runner_up", pa.int32(), "index of the second best prototype"),
        _field(
            "margin",
            pa.float32(),
            "how much worse the runner-up is: log ratio of the posteriors, or difference of the squared errors",
        ),
    ]
    for name in config.transforms:
        doc = f"parameters of the {name} transformation of the prototype; all zeros mean the identity"
        fields.append(_field(_TRANSFORM + name, pa.list_(pa.float32()), doc))
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION), "loss": loss})


def prototypes_schema(loss: str) -> pa.Schema:
    """Return the schema of ``prototypes.parquet``; `loss` is the name of the loss column of the clusters."""
    fields = [
        _field("cluster", pa.int32(), "index of the cluster and its prototype, from 0"),
        _field("size", pa.int64(), "number of images assigned to the cluster"),
        _field("share", pa.float64(), "size divided by the number of all images, in [0, 1]"),
        _field(
            "quality",
            pa.float64(),
            "label-free score in [0, 1]: how much of the outlines alignment explains beyond the mean image",
        ),
        _field(
            "detail",
            pa.float64(),
            "part of the outlines of its images (edges at 16 px) that the aligned prototype explains",
        ),
        _field(
            "unaligned_detail", pa.float64(), "part of the outlines of its images that their unaligned mean explains"
        ),
        _field("explained", pa.float64(), "part of the variance around the unaligned mean that alignment explains"),
        _field("sharpness", pa.float64(), "ratio of the mean squared edges of the prototype to those of its images"),
        _field("spread", pa.float64(), "root mean square difference of images aligned back and prototype, in [0, 1]"),
        _field("median_margin", pa.float64(), "median margin to the runner-up, in the unit of the loss"),
        _field("mixing_proportion", pa.float64(), "learned weight in the mixture; 1/K if the method has no weights"),
        _field(f"mean_{loss}", pa.float64(), f"mean {loss} of its images; null if it has no images"),
        _field("nearest", pa.list_(pa.string()), "image_ids of the images with the lowest loss, lowest first"),
        _field("pixels", pa.binary(), "picture of the prototype, as a PNG file"),
    ]
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION), "loss": loss})


def loss_column(schema: pa.Schema) -> str:
    """Return the name of the loss column in tables of `schema`."""
    return str(schema.metadata[b"loss"].decode())


def transform_columns(schema: pa.Schema) -> dict[str, str]:
    """Return the name of the parameters' column of each transformation module, by the name of the module."""
    return {name.removeprefix(_TRANSFORM): name for name in schema.names if name.startswith(_TRANSFORM)}


def clusters_table(parts: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """Return all assigned images as one table, sorted by cluster, and by loss within a cluster."""
    order = [("cluster", "ascending"), (loss_column(schema), "ascending")]
    order += [("image_id", "ascending"), ("crawl_id", "ascending")]  # break ties, so that the table is reproducible
    return pa.concat_tables([schema.empty_table(), *parts]).sort_by(order)


def check_counts(storage: Storage, clusters: pa.Table, crawls: Sequence[Crawl]) -> None:
    """Raise PipelineError unless `clusters` has as many rows of each of the `crawls` as it has ingested images.

    `storage` is only used for the address of the crawl in the message.
    """
    counts = {item["values"]: item["counts"] for item in clusters["crawl_id"].value_counts().to_pylist()}
    for crawl in crawls:
        if (assigned := counts.pop(crawl.crawl_id, 0)) != crawl.accepted:
            folder = storage.uri(CrawlPaths(crawl.collection, crawl.crawl_id).folder)
            raise PipelineError(
                f"crawl {crawl.crawl_id}: {assigned} images were assigned, {crawl.accepted} were ingested; its shards "
                f"have been changed or lost: delete {folder} and run the same command again"
            )
    if counts:
        raise PipelineError(f"expected images of the crawls of this run only; found images of {sorted(counts)}")


def without_sources(clusters: pa.Table) -> pa.Table:
    """Return `clusters` with nulls in the columns that identify an image or quote its post; see `SOURCES`."""
    for name in SOURCES:
        field = clusters.schema.field(name)
        clusters = clusters.set_column(
            clusters.schema.get_field_index(name), field, pa.nulls(clusters.num_rows, field.type)
        )
    return clusters


def prototypes_table(
    clusters: pa.Table,
    pictures: Sequence[Pixels],
    proportions: Sequence[float],
    scores: Sequence[Mapping[str, float | None]],
    n_nearest: int,
) -> pa.Table:
    """Return one row per prototype, in the model's order, including empty clusters.

    Args:
        clusters: one row per image; see `clusters_table`.
        pictures: K prototypes, uint8 (H, W, C).
        proportions: K mixing proportions.
        scores: the quality columns of each of the K prototypes.
        n_nearest: maximum number of images in the column ``nearest``.

    Raises PipelineError if an image is assigned to a prototype that does not exist.
    """
    loss = loss_column(clusters.schema)
    rows: list[dict[str, Any]] = []
    members_by_cluster = by_cluster(clusters, len(pictures))
    for cluster, (members, picture, proportion, score) in enumerate(
        zip(members_by_cluster, pictures, proportions, scores, strict=True)
    ):
        row = {
            "cluster": cluster,
            "size": members.num_rows,
            "share": members.num_rows / max(1, clusters.num_rows),
            **score,
            "mixing_proportion": float(proportion),
            f"mean_{loss}": float(members[loss].to_numpy().mean(dtype=np.float64)) if members.num_rows else None,
            "nearest": nearest_of(members, n_nearest)["image_id"].to_pylist(),
            "pixels": png(to_image(picture)),
        }
        rows.append(row)
    if (total := sum(row["size"] for row in rows)) != clusters.num_rows:
        raise PipelineError(f"{clusters.num_rows - total} images are assigned to none of the {len(rows)} prototypes")
    return pa.Table.from_pylist(rows, schema=prototypes_schema(loss))


def by_cluster(clusters: pa.Table, k: int) -> list[pa.Table]:
    """Return the rows of each of `k` clusters as a view of `clusters`, lowest loss first.

    `clusters` must be sorted as `clusters_table` sorts it.
    """
    ends = np.searchsorted(clusters["cluster"].to_numpy(), np.arange(k + 1)).tolist()
    return [clusters.slice(start, end - start) for start, end in pairwise(ends)]


def median_margin(members: pa.Table) -> float | None:
    """Return the median margin to the runner-up of the images of one cluster; None if it has no images."""
    margins = members["margin"].to_numpy()
    return float(np.median(margins)) if len(margins) else None


def nearest_of(members: pa.Table, n: int) -> pa.Table:
    """Return the rows of the `n` images of a cluster with the lowest loss.

    `members` are the rows of the cluster, lowest loss first. An image that occurs in several crawls counts once.
    """
    return first_images(members, range(members.num_rows), n)


def first_images(rows: pa.Table, order: Iterable[int], n: int) -> pa.Table:
    """Return the first `n` of `rows` in the given order; an image that occurs in several crawls counts once."""
    image_ids = rows["image_id"]
    row_of: dict[str, int] = {}
    for row in order:
        if len(row_of) == n:
            break
        row_of.setdefault(image_ids[row].as_py(), row)
    return rows.take(pa.array(row_of.values(), pa.int64()))


def _field(name: str, kind: pa.DataType, doc: str) -> pa.Field:
    return pa.field(name, kind, metadata={"doc": doc})
