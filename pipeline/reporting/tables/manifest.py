"""The two tables of a run: ``clusters.parquet``, a row per image, and ``prototypes.parquet``, a row per cluster.

A cluster keeps the model's index in every table and picture. The tables describe themselves: each field has a
``doc``, and the schema's metadata name the schema version and the column that holds the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import ClusteringConfig, Method
from pipeline.errors import PipelineError
from pipeline.paths import CrawlPaths
from pipeline.records import RECORD_FIELDS, Crawl
from pipeline.reporting.pictures.pixels import Pixels, png, to_image
from pipeline.reporting.survey.quality import Quality
from pipeline.storage import Storage

SCHEMA_VERSION = 3

LOSS_COLUMNS: dict[Method, str] = {
    "dti-gmm": "negative_log_likelihood",
    "ti-gmm": "negative_log_likelihood",
    "gmm": "negative_log_likelihood",
    "dti-kmeans": "squared_error",
    "ti-kmeans": "squared_error",
    "kmeans": "squared_error",
}
LOSS_NAMES = {"negative_log_likelihood": "negative log-likelihood", "squared_error": "squared error"}
"""Of the loss columns, in words."""
_LOSS_DOCS = {
    "negative_log_likelihood": "of the image under the mixture, in nats",
    "squared_error": "per pixel and channel, between the image and its transformed prototype",
}
_TRANSFORM = "transform_"
SOURCES = ("source_uri", "file_name", "shortcode", "caption", "hashtags", "source_url")
"""Columns of ``clusters.parquet`` that lead to a photo or say what its post said; null where examples are left out."""
_DESCRIPTIVE = ("source_uri", "file_name", "shortcode", "caption", "taken_at", "hashtags", "source_url", "label")


def clusters_schema(config: ClusteringConfig) -> pa.Schema:
    """Schema of ``clusters.parquet`` for the method and transformations of `config`."""
    loss = LOSS_COLUMNS[config.method]
    described = {field.name: field for field in RECORD_FIELDS}
    fields = [
        _field("image_id", pa.string(), "key in the shard; from the content, so stable"),
        *(described[name] for name in _DESCRIPTIVE),
        _field("crawl_id", pa.string(), "crawl that brought the image"),
        _field("shard", pa.int32(), "index of the shard of that crawl that holds the pixels"),
        _field("cluster", pa.int32(), "prototype with the largest posterior; the model's index"),
        _field(loss, pa.float32(), _LOSS_DOCS[loss]),
        _field("posterior", pa.float32(), "probability of that prototype, in [0, 1]"),
        _field("runner_up", pa.int32(), "second best prototype"),
        _field("margin", pa.float32(), "how much worse the runner-up is: log posterior ratio or squared error"),
    ]
    for name in config.transforms:
        doc = f"parameters of the {name} transformation of the prototype; all zero is the identity"
        fields.append(_field(_TRANSFORM + name, pa.list_(pa.float32()), doc))
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION), "loss": loss})


def prototypes_schema(loss: str) -> pa.Schema:
    """Schema of ``prototypes.parquet`` where the loss column of the clusters is called `loss`."""
    fields = [
        _field("cluster", pa.int32(), "the model's index, from 0"),
        _field("size", pa.int64(), "images assigned to it"),
        _field("share", pa.float64(), "size as a part of all images, in [0, 1]"),
        _field(
            "quality",
            pa.float64(),
            "label-free score in [0, 1]: what alignment explains of the outlines beyond the mean image",
        ),
        _field(
            "detail", pa.float64(), "part of its images' outlines (edges at 16 px) that the aligned prototype explains"
        ),
        _field("unaligned_detail", pa.float64(), "detail of the unaligned mean image in the prototype's place"),
        _field("explained", pa.float64(), "part of the variance around the unaligned mean that alignment explains"),
        _field("sharpness", pa.float64(), "edges of the prototype over those of its images, as mean squares"),
        _field("spread", pa.float64(), "root mean square of images aligned back minus the prototype, in [0, 1]"),
        _field("median_margin", pa.float64(), "median margin to the runner-up, in the unit of the loss"),
        _field("mixing_proportion", pa.float64(), "learned weight in the mixture; 1/K where the method has none"),
        _field(f"mean_{loss}", pa.float64(), f"mean {loss} of its images; null where it has none"),
        _field("nearest", pa.list_(pa.string()), "image_ids of the best explained images, best first"),
        _field("pixels", pa.binary(), "the prototype as a PNG file"),
    ]
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION), "loss": loss})


def loss_column(schema: pa.Schema) -> str:
    """Name of the column that holds the loss in tables of `schema`."""
    return str(schema.metadata[b"loss"].decode())


def transform_columns(schema: pa.Schema) -> dict[str, str]:
    """Column of each transformation module, by the module's name."""
    return {name.removeprefix(_TRANSFORM): name for name in schema.names if name.startswith(_TRANSFORM)}


def clusters_table(parts: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """All assigned images as one table, by cluster and within a cluster best explained first."""
    order = [("cluster", "ascending"), (loss_column(schema), "ascending")]
    order += [("image_id", "ascending"), ("crawl_id", "ascending")]  # ties, so that the table is reproducible
    return pa.concat_tables([schema.empty_table(), *parts]).sort_by(order)


def check_counts(storage: Storage, clusters: pa.Table, crawls: Sequence[Crawl]) -> None:
    """Raise PipelineError unless every ingested image of `crawls` has exactly one row in `clusters`.

    `storage` only tells where the crawls are, for the message.
    """
    found = {item["values"]: item["counts"] for item in clusters["crawl_id"].value_counts().to_pylist()}
    for crawl in crawls:
        if (assigned := found.pop(crawl.crawl_id, 0)) != crawl.accepted:
            folder = storage.uri(CrawlPaths(crawl.collection, crawl.crawl_id).folder)
            raise PipelineError(
                f"crawl {crawl.crawl_id}: {assigned} images were assigned, {crawl.accepted} were ingested; its shards "
                f"were changed or lost since: delete {folder} and run the same command again"
            )
    if found:
        raise PipelineError(f"images of crawls {sorted(found)} were assigned, which do not belong to this run")


def without_sources(clusters: pa.Table) -> pa.Table:
    """`clusters` with nothing in the columns that say what an image is of and where it came from: `SOURCES`."""
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
    qualities: Sequence[Quality],
    n_nearest: int,
) -> pa.Table:
    """One row per prototype, in the model's order, empty clusters included.

    Args:
        clusters: as `clusters_table` made it.
        pictures: K prototypes, uint8 (H, W, C).
        proportions: K mixing proportions.
        qualities: K scores.
        n_nearest: number of nearest images that are named.

    Raises PipelineError where an image is assigned to a prototype that does not exist.
    """
    loss = loss_column(clusters.schema)
    rows: list[dict[str, Any]] = []
    apart = by_cluster(clusters, len(pictures))
    for cluster, (members, picture, proportion, quality) in enumerate(
        zip(apart, pictures, proportions, qualities, strict=True)
    ):
        row = {
            "cluster": cluster,
            "size": members.num_rows,
            "share": members.num_rows / max(1, clusters.num_rows),
            **asdict(quality),
            "mixing_proportion": float(proportion),
            f"mean_{loss}": float(members[loss].to_numpy().mean(dtype=np.float64)) if members.num_rows else None,
            "nearest": nearest_of(members, n_nearest)["image_id"].to_pylist(),
            "pixels": png(to_image(picture)),
        }
        rows.append(row)
    if (counted := sum(row["size"] for row in rows)) != clusters.num_rows:
        raise PipelineError(f"{clusters.num_rows - counted} images are assigned to none of the {len(rows)} prototypes")
    return pa.Table.from_pylist(rows, schema=prototypes_schema(loss))


def by_cluster(clusters: pa.Table, k: int) -> list[pa.Table]:
    """Rows of the images of each of `k` clusters, best explained first; nothing is copied.

    `clusters` is sorted by cluster, as `clusters_table` made it.
    """
    ends = np.searchsorted(clusters["cluster"].to_numpy(), np.arange(k + 1)).tolist()
    return [clusters.slice(start, end - start) for start, end in pairwise(ends)]


def median_margin(members: pa.Table) -> float | None:
    """Median margin to the runner-up of the images of one cluster; None where it has none."""
    margins = members["margin"].to_numpy()
    return float(np.median(margins)) if len(margins) else None


def nearest_of(members: pa.Table, n: int) -> pa.Table:
    """Rows of the `n` best explained images of a cluster; an image that several crawls brought counts once.

    `members` are its rows, best explained first.
    """
    return first_images(members, range(members.num_rows), n)


def first_images(rows: pa.Table, order: Iterable[int], n: int) -> pa.Table:
    """The first `n` of `rows` in this order; an image that several crawls brought counts once."""
    image_ids = rows["image_id"]
    found: dict[str, int] = {}
    for row in order:
        if len(found) == n:
            break
        found.setdefault(image_ids[row].as_py(), row)
    return rows.take(pa.array(found.values(), pa.int64()))


def _field(name: str, kind: pa.DataType, doc: str) -> pa.Field:
    return pa.field(name, kind, metadata={"doc": doc})
