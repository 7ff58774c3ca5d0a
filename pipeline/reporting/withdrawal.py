"""A report is taken back: its files and what was tracked of it go, and what it takes to make it again stays."""

from __future__ import annotations

from pipeline.console import say
from pipeline.errors import StorageError
from pipeline.paths import RunPaths
from pipeline.reporting.report_files import single_files
from pipeline.reporting.tracking.locations import Place, places_of
from pipeline.reporting.tracking.runs import untrack
from pipeline.reporting.tracking.server import default_uri, without_credentials
from pipeline.storage import Storage, read_json


def withdraw(storage: Storage, paths: RunPaths, tracked: str | None = None) -> None:
    """Delete the report of the run `paths`; `paths.forgetting` has its ``run.json`` from now on.

    A report without ``run.json`` was never complete: what there is of it is deleted, and nothing is to make again.
    The run's own files go first, whatever becomes of MLflow's.

    Args:
        storage: workspace.
        paths: of the run.
        tracked: MLflow server or database, with user and password if it asks for them. It also stands for places that
            do not answer any more. Default: all places where the run was tracked.

    Raises StorageError where what MLflow has of it cannot be deleted; the next attempt tries again.
    """
    if storage.exists(paths.marker):
        storage.write_bytes(paths.forgetting, storage.read_bytes(paths.marker))
        storage.delete(paths.marker)
    for key in [*single_files(paths), *storage.list(paths.pictures)]:
        storage.delete(key)
    _untrack_everywhere(storage, paths, tracked)


def _untrack_everywhere(storage: Storage, paths: RunPaths, tracked: str | None) -> None:
    silent: list[StorageError] = []
    answered = False
    for place in _places(storage, paths, tracked):
        uri = place.uri or default_uri(storage)
        given = tracked is not None and without_credentials(tracked) == uri
        try:
            untrack(storage, tracked if given and tracked else uri, paths.collection, paths.run_id, place.workspace)
            answered = answered or given
        except StorageError as error:
            silent.append(error)
    for fault in silent:
        if not answered:
            raise fault
        say("forget", f"{fault}; taken to be what {without_credentials(tracked or '')} had")


def _places(storage: Storage, paths: RunPaths, tracked: str | None) -> list[Place]:
    """Where the run may be recorded, as far as anybody knows."""
    known = places_of(storage, paths)
    if storage.exists(paths.forgetting) and not known:
        known = [Place(read_json(storage, paths.forgetting)["tracking"]["uri"], storage.root)]
    if tracked is not None and without_credentials(tracked) not in {place.uri for place in known}:
        known.append(Place(without_credentials(tracked), storage.root))
    return known
