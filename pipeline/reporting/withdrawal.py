"""Withdrawing a report: delete its files and its records in MLflow, and keep its document to make it again."""

from __future__ import annotations

from pipeline.console import say
from pipeline.errors import StorageError
from pipeline.masking import mask
from pipeline.paths import RunPaths
from pipeline.reporting.report_files import single_files
from pipeline.reporting.tracking.locations import TrackingLocation, tracking_locations
from pipeline.reporting.tracking.runs import untrack
from pipeline.reporting.tracking.server import default_uri
from pipeline.storage import Storage, read_json


def withdraw(storage: Storage, paths: RunPaths, tracked: str | None = None) -> None:
    """Delete the report of the run `paths`, and move the content of its ``run.json`` to `paths.forgetting`.

    A report without ``run.json`` was never complete: its files are deleted, and it need not be made again. The files
    in the workspace are deleted first, even if deleting the records in MLflow fails afterwards.

    Args:
        storage: workspace.
        paths: keys of the run.
        tracked: MLflow server or database, with user and password if it requires them. If it answers, servers that
            do not answer any more are assumed to have moved there. Default: all locations where the run was tracked.

    Raises StorageError if the records in MLflow cannot be deleted; call it again to retry.
    """
    if storage.exists(paths.marker):
        storage.write_bytes(paths.forgetting, storage.read_bytes(paths.marker))
        storage.delete(paths.marker)
    for key in [*single_files(paths), *storage.list(paths.pictures)]:
        storage.delete(key)
    _untrack_everywhere(storage, paths, tracked)


def _untrack_everywhere(storage: Storage, paths: RunPaths, tracked: str | None) -> None:
    """Delete the records of the run at all of its locations; see `withdraw`."""
    failures: list[StorageError] = []
    given_answered = False
    for location in _locations(storage, paths, tracked):
        uri = location.uri or default_uri(storage)
        is_given = tracked is not None and mask(tracked) == uri
        try:
            untrack_uri = tracked if is_given and tracked else uri  # only the given URI has credentials
            untrack(storage, untrack_uri, paths.collection, paths.run_id, location.workspace)
            given_answered = given_answered or is_given
        except StorageError as error:
            failures.append(error)
    for failure in failures:
        if not given_answered:
            raise failure
        say("forget", f"{mask(tracked or '')} is assumed to replace an unreachable location: {failure}")


def _locations(storage: Storage, paths: RunPaths, tracked: str | None) -> list[TrackingLocation]:
    """Return all known locations where the run may be recorded, including `tracked`."""
    locations = tracking_locations(storage, paths)
    if storage.exists(paths.forgetting) and not locations:
        locations = [TrackingLocation(read_json(storage, paths.forgetting)["tracking"]["uri"], storage.root)]
    if tracked is not None and mask(tracked) not in {location.uri for location in locations}:
        locations.append(TrackingLocation(mask(tracked), storage.root))
    return locations
