"""The pictures of each cluster, drawn and published by Ray tasks that read only the shards they show."""

from __future__ import annotations

import time

import pyarrow as pa
import torch

from pipeline.clustering.model.method import ClusteringMethod
from pipeline.config import ReportingConfig
from pipeline.console import Progress, rated, say
from pipeline.paths import CrawlPaths, RunPaths
from pipeline.reporting.assignment.shards import trained_method
from pipeline.reporting.pictures.mosaic import Strip, Tile, draw_strip
from pipeline.reporting.pictures.motion import draw_motion
from pipeline.reporting.pictures.pixels import Pixels, png, to_images, to_pictures
from pipeline.reporting.report_files import picture_keys
from pipeline.reporting.survey.survey import by_shard, image_keys, parameters_of
from pipeline.reporting.tables.manifest import by_cluster, nearest_of
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
    options: ReportingConfig,
    moving: bool,
) -> list[str]:
    """Draw and publish a strip per tile with its nearest images, and its animation; return all keys.

    Args:
        storage: workspace with the shards and the model; it travels to the tasks.
        checkpoint: key of the trained model.
        paths: of the run.
        clusters: as `manifest.clusters_table` made it.
        tiles: the prototypes, empty clusters included.
        options: how many images to show, and how large.
        moving: whether to draw animations.
    """
    import ray

    task = ray.remote(num_cpus=1)(_publish)
    started = time.monotonic()
    n = max(options.strip_images, options.motion_images)
    apart = by_cluster(clusters, len(tiles))
    shown = [(tile, nearest_of(apart[tile.cluster], n)) for tile in tiles]
    chunks = [shown[start : start + CLUSTERS_PER_TASK] for start in range(0, len(shown), CLUSTERS_PER_TASK)]
    with Progress("draw", len(tiles), "cluster") as progress:
        submit = lambda chunk: task.remote(storage, checkpoint, paths, chunk, options, moving)  # noqa: E731
        for chunk, _ in run_bounded(submit, chunks):
            progress.advance(len(chunk))
    keys = picture_keys(paths, len(tiles), moving)
    say("draw", rated(len(keys), "picture", time.monotonic() - started))
    return keys


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
    storage: Storage,
    checkpoint: str,
    paths: RunPaths,
    shown: list[tuple[Tile, pa.Table]],
    options: ReportingConfig,
    moving: bool,
) -> None:
    method = trained_method(storage.root, checkpoint)
    found = _read_photos(storage, paths.collection, [rows for _, rows in shown])
    for tile, rows in shown:
        photos = [found[key] for key in image_keys(rows)]
        still = rows.slice(0, options.strip_images)
        strip = strip_of(method, tile, photos[: still.num_rows], still)
        storage.write_bytes(paths.strip(tile.cluster), png(draw_strip(strip, options.tile_px)))
        if moving:
            few, side_px = photos[: options.motion_images], options.tile_px
            motion = draw_motion(method, tile.cluster, parameters_of(rows.slice(0, len(few))), few, side_px)
            storage.write_bytes(paths.motion(tile.cluster), motion)


def _read_photos(storage: Storage, collection: str, tables: list[pa.Table]) -> dict[tuple[str, int, str], Pixels]:
    """The pictures that `tables` name, by crawl, shard and image id; every shard is read once."""
    wanted = by_shard(key for rows in tables for key in image_keys(rows))
    return {
        (crawl_id, shard, sample.image_id): sample.pixels()
        for (crawl_id, shard), image_ids in wanted.items()
        for sample in read_shard(storage, CrawlPaths(collection, crawl_id).shard(shard))
        if sample.image_id in image_ids
    }
