"""Draw and publish the pictures of each cluster in Ray tasks, which read only the shards that they need."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import torch

from pipeline.clustering.model.method import ClusteringMethod
from pipeline.config import ReportingConfig
from pipeline.console import Progress
from pipeline.paths import CrawlPaths, RunPaths
from pipeline.records import Pixels
from pipeline.reporting.assignment.shards import trained_method
from pipeline.reporting.pictures.mosaic import Tile
from pipeline.reporting.pictures.motion import draw_motion
from pipeline.reporting.pictures.strip import Strip, draw_strip
from pipeline.reporting.pixels import png, to_images, to_pictures
from pipeline.reporting.report_files import is_animated
from pipeline.reporting.run import Run
from pipeline.reporting.survey.survey import by_shard, image_keys, parameters_of
from pipeline.reporting.tables.manifest import by_cluster, nearest_of
from pipeline.session import ray_task, run_bounded
from pipeline.shards import read_shard
from pipeline.storage import Storage

CLUSTERS_PER_TASK = 4
"""Number of clusters per task. Consecutive clusters share shards, but their photos must fit in memory together."""


@dataclass(frozen=True)
class _Drawing:
    """Input that all drawing tasks of a run have in common."""

    storage: Storage
    paths: RunPaths
    checkpoint_key: str
    options: ReportingConfig
    animated: bool


def publish_strips(storage: Storage, run: Run, clusters: pa.Table, tiles: list[Tile]) -> None:
    """Draw and publish the strip of each prototype with its nearest images, and its animation if the run has them.

    Args:
        storage: workspace with the shards and the model.
        run: the run to report.
        clusters: one row per image; see `manifest.clusters_table`.
        tiles: one tile per prototype, including empty clusters.
    """
    options = run.config.reporting
    drawing = _Drawing(storage, run.paths, run.checkpoint_key, options, is_animated(run))
    task = ray_task(_publish)
    n = max(options.strip_images, options.motion_images)
    members_by_cluster = by_cluster(clusters, len(tiles))
    strips = [(tile, nearest_of(members_by_cluster[tile.cluster], n)) for tile in tiles]
    chunks = [strips[start : start + CLUSTERS_PER_TASK] for start in range(0, len(strips), CLUSTERS_PER_TASK)]
    with Progress("draw", len(tiles), "cluster") as progress:
        for chunk, _ in run_bounded(lambda chunk: task.remote(drawing, chunk), chunks):
            progress.advance(len(chunk))


def strip_of(method: ClusteringMethod, tile: Tile, photos: list[Pixels], rows: pa.Table) -> Strip:
    """Return the strip of `tile` with `photos`; `rows` has their transformation parameters, in the same order."""
    if not photos:
        return Strip(tile, (), (), ())
    parameters = parameters_of(rows)
    cluster_B = torch.full((len(photos),), tile.cluster, dtype=torch.int64)
    with torch.no_grad():
        aligned_prototypes = to_pictures(method.transform(cluster_B, parameters))
        aligned_photos = to_pictures(method.align_back(to_images(photos), parameters))
    return Strip(tile, photos, list(aligned_prototypes), list(aligned_photos))


def _publish(drawing: _Drawing, strips: list[tuple[Tile, pa.Table]]) -> None:
    storage, paths, options = drawing.storage, drawing.paths, drawing.options
    method = trained_method(storage.root, drawing.checkpoint_key)
    photo_of = _read_photos(storage, paths.collection, [rows for _, rows in strips])
    for tile, rows in strips:
        photos = [photo_of[key] for key in image_keys(rows)]
        strip_rows = rows.slice(0, options.strip_images)
        strip = strip_of(method, tile, photos[: strip_rows.num_rows], strip_rows)
        storage.write_bytes(paths.strip(tile.cluster), png(draw_strip(strip, options.tile_px)))
        if drawing.animated:
            motion_photos, side_px = photos[: options.motion_images], options.tile_px
            parameters = parameters_of(rows.slice(0, len(motion_photos)))
            motion = draw_motion(method, tile.cluster, parameters, motion_photos, side_px)
            storage.write_bytes(paths.motion(tile.cluster), motion)


def _read_photos(storage: Storage, collection: str, tables: list[pa.Table]) -> dict[tuple[str, int, str], Pixels]:
    """Return the photos of all rows of `tables` by crawl, shard and image id, reading each shard once."""
    wanted = by_shard(key for rows in tables for key in image_keys(rows))
    return {
        (crawl_id, shard, sample.image_id): sample.pixels()
        for (crawl_id, shard), image_ids in wanted.items()
        for sample in read_shard(storage, CrawlPaths(collection, crawl_id).shard(shard))
        if sample.image_id in image_ids
    }
