"""The second pass over the shards: sums over each cluster, and thumbnails of the images that the page shows.

Ray tasks take a few shards each, read them image by image, and return sums and small files, no pixels of photos.
Parts are joined in the shards' order, so that the same run gives the same sums on any cluster.
"""

from __future__ import annotations

import time
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
from pipeline.console import Progress, rated, say
from pipeline.paths import CrawlPaths
from pipeline.reporting.assignment.batch import BATCH_SIZE
from pipeline.reporting.assignment.shards import trained_method
from pipeline.reporting.pictures.pixels import to_images, to_pictures
from pipeline.reporting.pictures.thumbnails import ThumbnailForm, thumbnail
from pipeline.reporting.survey.sums import ClusterSums
from pipeline.reporting.tables.manifest import transform_columns
from pipeline.session import run_bounded
from pipeline.shards import Sample, read_shard
from pipeline.storage import Storage

SHARDS_PER_TASK = 8
"""The more, the fewer sums are sent and joined; they are all that a task keeps while it reads."""

ImageKey = tuple[str, int, str]
"""Crawl, shard and image id: one row of the clusters table."""


@dataclass(frozen=True)
class Thumbnails:
    """An image as the page shows it: three WebP files."""

    photo: bytes
    prototype: bytes
    """Its prototype, aligned to it."""
    aligned: bytes
    """The photo, aligned back to its prototype."""


@dataclass
class Survey:
    """What the pass found."""

    sums: dict[int, ClusterSums] = field(default_factory=dict)
    """By cluster; those without images are missing."""
    thumbnails: dict[ImageKey, Thumbnails] = field(default_factory=dict)

    def sums_of(self, cluster: int, shape: tuple[int, ...]) -> ClusterSums:
        """Sums over the images of `cluster`, of (C, H, W) = `shape`; over no image where it has none."""
        return self.sums.get(cluster) or ClusterSums.nothing(shape)

    def __iadd__(self, other: Survey) -> Survey:
        for cluster, part in other.sums.items():
            if cluster in self.sums:
                self.sums[cluster] += part
            else:
                self.sums[cluster] = part
        self.thumbnails |= other.thumbnails
        return self


def survey_clusters(
    storage: Storage, checkpoint: str, collection: str, clusters: pa.Table, shown: set[ImageKey], form: ThumbnailForm
) -> Survey:
    """Sums over all images of `clusters`, and the thumbnails of those that are `shown`.

    Args:
        storage: workspace with the shards and the model; it travels to the tasks.
        checkpoint: key of the trained model.
        collection: that the crawls belong to.
        clusters: as `manifest.clusters_table` made it.
        shown: images to draw.
        form: of the thumbnails.
    """
    import ray

    task = ray.remote(num_cpus=1)(_survey)
    parts = list(_by_shard(clusters, shown))
    chunks = [parts[start : start + SHARDS_PER_TASK] for start in range(0, len(parts), SHARDS_PER_TASK)]
    submit = lambda index: task.remote(storage, checkpoint, collection, chunks[index], form)  # noqa: E731
    started = time.monotonic()
    result, following = Survey(), 0
    waiting: dict[int, Survey] = {}
    with Progress("survey", clusters.num_rows, "img") as progress:
        for index, found in run_bounded(submit, range(len(chunks))):
            progress.advance(sum(part.rows.num_rows for part in chunks[index]))
            waiting[index] = found
            while following in waiting:
                result += waiting.pop(following)
                following += 1
    say("survey", rated(clusters.num_rows, "image", time.monotonic() - started))
    return result


def survey_samples(
    method: ClusteringMethod, samples: Iterable[Sample], rows: pa.Table, shown: set[str], form: ThumbnailForm
) -> Iterator[tuple[dict[int, ClusterSums], dict[str, Thumbnails]]]:
    """Sums by cluster and thumbnails by image id, for a batch of `samples` after the other.

    Args:
        method: the trained model.
        samples: of one shard, in any order.
        rows: their rows of the clusters table; samples without a row are left out.
        shown: ids of the images to draw.
        form: of the thumbnails.
    """
    prototypes_KCHW = method.prototypes_KCHW()
    place = {image_id: row for row, image_id in enumerate(rows["image_id"].to_pylist())}
    known = (sample for sample in samples if sample.image_id in place)
    while batch := list(islice(known, BATCH_SIZE)):
        own = rows.take(pa.array([place[sample.image_id] for sample in batch]))
        cluster_B = torch.from_numpy(own["cluster"].to_numpy().astype(np.int64))
        photos, parameters = to_images([sample.pixels() for sample in batch]), parameters_of(own)
        transformed, aligned = method.transform(cluster_B, parameters), method.align_back(photos, parameters)
        sums: dict[int, ClusterSums] = {}
        for cluster in cluster_B.unique().tolist():
            members = cluster_B == cluster
            sums[cluster] = ClusterSums.nothing(photos.shape[1:])
            sums[cluster].add(photos[members], transformed[members], aligned[members], prototypes_KCHW[cluster])
        drawn = [index for index, sample in enumerate(batch) if sample.image_id in shown]
        pictures = [to_pictures(images[drawn]) for images in (photos, transformed, aligned)]
        files = [[thumbnail(picture, form) for picture in row] for row in pictures]
        yield sums, {batch[i].image_id: Thumbnails(*three) for i, *three in zip(drawn, *files, strict=True)}


def parameters_of(rows: pa.Table) -> dict[str, Tensor]:
    """(B, p) parameters per module from rows of the clusters table; a module that was never switched on has none."""
    columns = transform_columns(rows.schema)
    return {
        module: torch.tensor(rows[name].to_pylist()) for module, name in columns.items() if not rows[name].null_count
    }


def image_keys(rows: pa.Table) -> list[ImageKey]:
    """The key of each row of the clusters table."""
    columns: list[list[Any]] = [rows[name].to_pylist() for name in ("crawl_id", "shard", "image_id")]
    return list(zip(*columns, strict=True))


def by_shard(keys: Iterable[ImageKey]) -> dict[tuple[str, int], set[str]]:
    """Image ids by crawl and shard."""
    found: dict[tuple[str, int], set[str]] = defaultdict(set)
    for crawl_id, shard, image_id in keys:
        found[crawl_id, shard].add(image_id)
    return found


@dataclass(frozen=True)
class _ShardPart:
    """What a task needs to know of one shard."""

    crawl_id: str
    shard: int
    rows: pa.Table
    """Image id, cluster and transformation parameters of its images."""
    shown: set[str]
    """Ids of the images to draw."""


def _survey(storage: Storage, checkpoint: str, collection: str, parts: list[_ShardPart], form: ThumbnailForm) -> Survey:
    method = trained_method(storage.root, checkpoint)
    result = Survey()
    for part in parts:
        samples = read_shard(storage, CrawlPaths(collection, part.crawl_id).shard(part.shard))
        for sums, thumbnails in survey_samples(method, samples, part.rows, part.shown, form):
            named = {(part.crawl_id, part.shard, image_id): three for image_id, three in thumbnails.items()}
            result += Survey(sums, named)
    return result


def _by_shard(clusters: pa.Table, shown: set[ImageKey]) -> Iterator[_ShardPart]:
    """The rows of each shard, in the order of crawls and shards."""
    place = ["crawl_id", "shard"]
    order = [(name, "ascending") for name in place]
    needed = [*place, "image_id", "cluster", *transform_columns(clusters.schema).values()]
    rows = clusters.select(needed).sort_by(order).combine_chunks()
    drawn = by_shard(shown)
    start = 0
    for run in clusters.group_by(place).aggregate([([], "count_all")]).sort_by(order).to_pylist():
        crawl_id, shard, n = run["crawl_id"], run["shard"], run["count_all"]
        yield _ShardPart(crawl_id, shard, rows.slice(start, n), drawn.get((crawl_id, shard), set()))
        start += n
