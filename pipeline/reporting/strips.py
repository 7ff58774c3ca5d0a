"""The picture of each cluster, drawn and published by Ray tasks that read only the shards they show."""

from __future__ import annotations

from collections import defaultdict

import pyarrow as pa
import torch

from pipeline.clustering.method import ClusteringMethod
from pipeline.layout import CrawlPaths, RunPaths
from pipeline.progress import Progress
from pipeline.reporting.assign import trained_method
from pipeline.reporting.manifest import nearest_of
from pipeline.reporting.mosaic import Strip, Tile, draw_strip
from pipeline.reporting.pixels import Pixels, png, to_images, to_pictures
from pipeline.reporting.survey import image_keys, parameters_of
from pipeline.session import run_bounded
from pipeline.shards import read_shard
from pipeline.storage import Storage

CLUSTERS_PER_TASK = 4
"""Clusters that one task draws: neighbours in size share shards, but their pixels must fit in memory together."""


def publish_strips(
    storage: Storage,
    checkpoint: str,
    paths: RunPaths,
    clusters: pa.Table,
    tiles: list[Tile],
    images_per_strip: int,
    tile_px: int,
) -> list[str]:
    """Draw one strip per tile with its nearest images and publish it; return their keys, in the tiles' order.

    Args:
        storage: workspace with the shards and the model; it travels to the tasks.
        checkpoint: key of the trained model.
        paths: of the run.
        clusters: as `manifest.clusters_table` made it.
        tiles: the prototypes, empty clusters included.
        images_per_strip: nearest images to show.
        tile_px: side of one picture in the strip.
    """
    import ray

    task = ray.remote(num_cpus=1)(_publish)
    shown = [(tile, nearest_of(clusters, tile.cluster, images_per_strip)) for tile in tiles]
    chunks = [shown[start : start + CLUSTERS_PER_TASK] for start in range(0, len(shown), CLUSTERS_PER_TASK)]
    with Progress("draw", len(tiles), "cluster") as progress:
        submit = lambda chunk: task.remote(storage, checkpoint, paths, chunk, tile_px)  # noqa: E731
        for chunk, _ in run_bounded(submit, chunks):
            progress.advance(len(chunk))
    return [paths.strip(tile.cluster) for tile in tiles]


def strip_of(method: ClusteringMethod, tile: Tile, photos: list[Pixels], rows: pa.Table) -> Strip:
    """The strip of `tile` with `photos`, whose transformation parameters stand in `rows`, in the same order."""
    if not photos:
        return Strip(tile, (), (), ())
    parameters = parameters_of(rows)
    cluster_B = torch.full((len(photos),), tile.cluster, dtype=torch.int64)
    with torch.no_grad():
        aligned_prototypes = to_pictures(method.transform(cluster_B, parameters))
        aligned_photos = to_pictures(method.align_back(to_images(photos), parameters))
    return Strip(tile, photos, list(aligned_prototypes), list(aligned_photos))


def _publish(
    storage: Storage, checkpoint: str, paths: RunPaths, shown: list[tuple[Tile, pa.Table]], tile_px: int
) -> None:
    method = trained_method(storage.root, checkpoint)
    photos = _read_photos(storage, paths.collection, [rows for _, rows in shown])
    for tile, rows in shown:
        strip = strip_of(method, tile, [photos[key] for key in image_keys(rows)], rows)
        storage.write_bytes(paths.strip(tile.cluster), png(draw_strip(strip, tile_px)))


def _read_photos(storage: Storage, collection: str, tables: list[pa.Table]) -> dict[tuple[str, int, str], Pixels]:
    """The pictures that `tables` name, by crawl, shard and image id; every shard is read once."""
    wanted: dict[tuple[str, int], set[str]] = defaultdict(set)
    for rows in tables:
        for crawl_id, shard, image_id in image_keys(rows):
            wanted[crawl_id, shard].add(image_id)
    return {
        (crawl_id, shard, sample.image_id): sample.pixels()
        for (crawl_id, shard), image_ids in wanted.items()
        for sample in read_shard(storage, CrawlPaths(collection, crawl_id).shard(shard))
        if sample.image_id in image_ids
    }
