"""A report is taken back: its files and what was tracked of it go, and what it takes to make it again stays."""

from __future__ import annotations

from pipeline.errors import ConfigError
from pipeline.layout import RunPaths
from pipeline.reporting.tracking.runs import untrack
from pipeline.reporting.tracking.server import default_uri
from pipeline.storage import Storage, read_json


def withdraw(storage: Storage, paths: RunPaths, tracked: str | None = None) -> None:
    """Delete the report of the run `paths`; `paths.forgetting` has its ``run.json`` from now on.

    A report without ``run.json`` was never complete: what there is of it is deleted, and nothing is to make again. The
    files go last: as long as there are any, the next attempt knows that there is something to withdraw.

    Args:
        storage: workspace.
        paths: of the run.
        tracked: MLflow server or database. Default: where the run was tracked, without user and password.

    Raises:
        ConfigError: nothing tells where the run was tracked.
        StorageError: what MLflow has of it cannot be deleted.
    """
    files = {paths.clusters, paths.spreadsheet, paths.prototypes, paths.mosaic, paths.timelapse, paths.page}
    files = (files & set(storage.list(paths.folder))) | set(storage.list(paths.pictures))
    if storage.exists(paths.marker):
        storage.write_bytes(paths.forgetting, storage.read_bytes(paths.marker))
        storage.delete(paths.marker)
    if files or storage.exists(paths.forgetting):
        untrack(storage, tracked or _tracked(storage, paths), paths.collection, paths.run_id)
    for key in files:
        storage.delete(key)


def _tracked(storage: Storage, paths: RunPaths) -> str:
    """Where the run was tracked, as far as the workspace knows."""
    if storage.exists(paths.forgetting):
        return str(read_json(storage, paths.forgetting)["tracking"]["uri"])
    if "://" in storage.root:
        raise ConfigError(
            f"run {paths.run_id!r}: its report was interrupted; give --tracking-uri, so that MLflow's part is deleted"
        )
    return default_uri(storage)
