"""The second pass over the shards: compute sums over each cluster, and thumbnails of the images on the page.

Each Ray task reads a few shards and returns sums and thumbnails. The driver adds the results in the order of the
shards, so that a run gives the same sums on any number of machines.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.clustering.model.method import ClusteringMethod
from pipeline.console import Progress
from pipeline.paths import CrawlPaths
from pipeline.reporting.assignment.batch import BATCH_SIZE
from pipeline.reporting.assignment.shards import trained_method
from pipeline.reporting.pictures.thumbnails import ThumbnailForm, thumbnail
from pipeline.reporting.pixels import to_images, to_pictures
from pipeline.reporting.run import Run
from pipeline.reporting.survey.sums import ClusterSums
from pipeline.reporting.tables.manifest import transform_columns
from pipeline.session import ray_task, run_bounded
from pipeline.shards import Sample, read_shard
from pipeline.storage import Storage

SHARDS_PER_TASK = 8
"""Shards that one task reads. A task returns one set of sums, so a larger number means fewer sums to transfer."""

ImageKey = tuple[str, int, str]
"""Crawl id, shard index and image id: the key of a row of the clusters table."""


@dataclass(frozen=True)
class Thumbnails:
    """The three pictures of an image on the page, as WebP files."""

    photo: bytes
    prototype: bytes
    """The prototype of its cluster, aligned to the photo."""
    aligned: bytes
    """The photo, aligned back to the prototype."""


@dataclass
class Survey:
    """Result of the pass, or of a part of it; `+=` adds another part."""

    sums: dict[int, ClusterSums] = field(default_factory=dict)
    """Sums by cluster; clusters without images are missing."""
    thumbnails: dict[ImageKey, Thumbnails] = field(default_factory=dict)
    """Thumbnails of the requested images."""

    def sums_of(self, cluster: int, shape: tuple[int, ...]) -> ClusterSums:
        """Return the sums of `cluster`, where images have the shape (C, H, W) = `shape`; zeros if it has no images."""
        return self.sums.get(cluster) or ClusterSums.zeros(shape)

    def __iadd__(self, other: Survey) -> Survey:
        for cluster, part in other.sums.items():
            if cluster in self.sums:
                self.sums[cluster] += part
            else:
                self.sums[cluster] = part
        self.thumbnails |= other.thumbnails
        return self


def survey_clusters(
    storage: Storage, run: Run, clusters: pa.Table, to_draw: set[ImageKey], form: ThumbnailForm
) -> Survey:
    """Compute the sums over all images of `clusters`, and draw the thumbnails of some of them.

    Args:
        storage: workspace with the shards and the model; it is sent to the tasks.
        run: the run to which the clusters belong.
        clusters: one row per image; see `manifest.clusters_table`.
        to_draw: images of which thumbnails are drawn.
        form: size limits of the thumbnails.
    """
    task = ray_task(_survey)
    parts = list(_by_shard(clusters, to_draw))
    chunks = [parts[start : start + SHARDS_PER_TASK] for start in range(0, len(parts), SHARDS_PER_TASK)]
    submit = lambda index: task.remote(storage, run.checkpoint_key, run.collection, chunks[index], form)  # noqa: E731
    result, next_index = Survey(), 0
    waiting: dict[int, Survey] = {}
    with Progress("survey", clusters.num_rows, "image") as progress:
        for index, chunk_result in run_bounded(submit, range(len(chunks))):
            progress.advance(sum(part.rows.num_rows for part in chunks[index]))
            waiting[index] = chunk_result
            while next_index in waiting:
                result += waiting.pop(next_index)
                next_index += 1
    return result


def survey_samples(
    method: ClusteringMethod, samples: Iterable[Sample], rows: pa.Table, to_draw: set[str], form: ThumbnailForm
) -> Iterator[tuple[dict[int, ClusterSums], dict[str, Thumbnails]]]:
    """Yield sums by cluster and thumbnails by image id, for one batch of `samples` after another.

    Args:
        method: the trained model.
        samples: samples of one shard, in any order.
        rows: their rows of the clusters table; samples without a row are ignored.
        to_draw: ids of the images of which thumbnails are drawn.
        form: size limits of the thumbnails.
    """
    prototypes_KCHW = method.prototypes_KCHW()
    row_of = {image_id: row for row, image_id in enumerate(rows["image_id"].to_pylist())}
    known = (sample for sample in samples if sample.image_id in row_of)
    while batch := list(islice(known, BATCH_SIZE)):
        batch_rows = rows.take(pa.array([row_of[sample.image_id] for sample in batch]))
        cluster_B = torch.from_numpy(batch_rows["cluster"].to_numpy().astype(np.int64))
        photos, parameters = to_images([sample.pixels() for sample in batch]), parameters_of(batch_rows)
        transformed, aligned = method.transform(cluster_B, parameters), method.align_back(photos, parameters)
        sums: dict[int, ClusterSums] = {}
        for cluster in cluster_B.unique().tolist():
            members = cluster_B == cluster
            sums[cluster] = ClusterSums.zeros(photos.shape[1:])
            sums[cluster].add(photos[members], transformed[members], aligned[members], prototypes_KCHW[cluster])
        indices = [index for index, sample in enumerate(batch) if sample.image_id in to_draw]
        pictures = [to_pictures(images[indices]) for images in (photos, transformed, aligned)]
        files = [[thumbnail(picture, form) for picture in row] for row in pictures]
        yield sums, {batch[i].image_id: Thumbnails(*three) for i, *three in zip(indices, *files, strict=True)}


def parameters_of(rows: pa.Table) -> dict[str, Tensor]:
    """Return the (B, p) parameters of each module from rows of the clusters table, without modules never activated."""
    columns = transform_columns(rows.schema)
    return {
        module: torch.tensor(rows[name].to_pylist()) for module, name in columns.items() if not rows[name].null_count
    }


def image_keys(rows: pa.Table) -> list[ImageKey]:
    """Return the key of each row of the clusters table."""
    columns: list[list[Any]] = [rows[name].to_pylist() for name in ("crawl_id", "shard", "image_id")]
    return list(zip(*columns, strict=True))


def by_shard(keys: Iterable[ImageKey]) -> dict[tuple[str, int], set[str]]:
    """Group image ids by crawl and shard."""
    image_ids: dict[tuple[str, int], set[str]] = defaultdict(set)
    for crawl_id, shard, image_id in keys:
        image_ids[crawl_id, shard].add(image_id)
    return image_ids


@dataclass(frozen=True)
class _ShardPart:
    """The input of a task for one shard."""

    crawl_id: str
    shard: int
    rows: pa.Table
    """Image id, cluster and transformation parameters of the images of the shard."""
    to_draw: set[str]
    """Ids of the images of which thumbnails are drawn."""


def _survey(storage: Storage, checkpoint: str, collection: str, parts: list[_ShardPart], form: ThumbnailForm) -> Survey:
    method = trained_method(storage.root, checkpoint)
    result = Survey()
    for part in parts:
        samples = read_shard(storage, CrawlPaths(collection, part.crawl_id).shard(part.shard))
        for sums, thumbnails in survey_samples(method, samples, part.rows, part.to_draw, form):
            by_key = {(part.crawl_id, part.shard, image_id): three for image_id, three in thumbnails.items()}
            result += Survey(sums, by_key)
    return result


def _by_shard(clusters: pa.Table, to_draw: set[ImageKey]) -> Iterator[_ShardPart]:
    """Yield the rows of each shard, ordered by crawl and shard."""
    shard_columns = ["crawl_id", "shard"]
    order = [(name, "ascending") for name in shard_columns]
    columns = [*shard_columns, "image_id", "cluster", *transform_columns(clusters.schema).values()]
    rows = clusters.select(columns).sort_by(order).combine_chunks()
    to_draw_by_shard = by_shard(to_draw)
    start = 0
    for group in clusters.group_by(shard_columns).aggregate([([], "count_all")]).sort_by(order).to_pylist():
        crawl_id, shard, n = group["crawl_id"], group["shard"], group["count_all"]
        yield _ShardPart(crawl_id, shard, rows.slice(start, n), to_draw_by_shard.get((crawl_id, shard), set()))
        start += n
