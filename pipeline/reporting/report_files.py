"""Which files a report consists of, apart from ``run.json``."""

from __future__ import annotations

from pipeline.config import JobConfig
from pipeline.paths import RunPaths


def report_files(paths: RunPaths, k: int, config: JobConfig) -> list[str]:
    """Keys of all of them."""
    return [*single_files(paths), *pictures(paths, k, config)]


def single_files(paths: RunPaths) -> list[str]:
    """Keys of those that every report has once."""
    return [paths.prototypes, paths.clusters, paths.spreadsheet, paths.mosaic, paths.timelapse, paths.page]


def pictures(paths: RunPaths, k: int, config: JobConfig) -> list[str]:
    """Keys of the clusters' pictures, of which there are none without examples: they are full of photos."""
    return picture_keys(paths, k, is_moving(config)) if config.reporting.examples else []


def picture_keys(paths: RunPaths, k: int, moving: bool) -> list[str]:
    """Keys of the strips of `k` clusters and, where they move, of their animations."""
    strips = [paths.strip(cluster) for cluster in range(k)]
    return strips + [paths.motion(cluster) for cluster in range(k if moving else 0)]


def is_moving(config: JobConfig) -> bool:
    """Whether there is something that moves, and the user wants to see it."""
    return bool(config.reporting.motion_images and config.clustering.transforms)
