"""The files of a report, except ``run.json``."""

from __future__ import annotations

from pipeline.paths import RunPaths
from pipeline.reporting.run import Run


def report_files(run: Run) -> list[str]:
    """Return the keys of all files of the report of `run`, except ``run.json``."""
    return [*single_files(run.paths), *picture_files(run)]


def single_files(paths: RunPaths) -> list[str]:
    """Return the keys of the files that exist once per report, independent of the number of clusters."""
    return [paths.prototypes, paths.clusters, paths.spreadsheet, paths.mosaic, paths.timelapse, paths.page]


def picture_files(run: Run) -> list[str]:
    """Return the keys of the pictures of all clusters; none without examples, since these pictures show photos."""
    if not run.config.reporting.examples:
        return []
    k, paths = run.selected.k, run.paths
    strips = [paths.strip(cluster) for cluster in range(k)]
    return strips + [paths.motion(cluster) for cluster in range(k if is_animated(run) else 0)]


def is_animated(run: Run) -> bool:
    """Whether the report has animations: they are requested, and the model has transformations to animate."""
    return bool(run.config.reporting.motion_images and run.config.clustering.transforms)
