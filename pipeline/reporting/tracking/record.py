"""A report that is made is recorded in MLflow, and says in its ``run.json`` where."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.config import JobConfig
from pipeline.paths import RunPaths
from pipeline.reporting.report_files import report_files
from pipeline.reporting.run import PastRun
from pipeline.reporting.tracking.locations import remember
from pipeline.reporting.tracking.runs import Tracking, finish, track
from pipeline.reporting.tracking.server import tracking_uri, without_credentials
from pipeline.storage import Storage, write_json


def is_recorded(storage: Storage, config: JobConfig, document: dict[str, Any]) -> bool:
    """Whether ``run.json``, whose content is `document`, says that all is recorded where `config` wants it."""
    tracking = Tracking(**document["tracking"])
    complete = tracking.error is None and tracking.model is not None
    return complete and tracking.uri == without_credentials(tracking_uri(storage, config))


def record(storage: Storage, run: PastRun) -> dict[str, Any]:
    """Record `run` in MLflow; what goes wrong costs a warning.

    Returns:
        The content of ``run.json``, which is written last. Where nothing could be recorded, the file goes on saying
        where the run was recorded before.
    """
    paths = RunPaths(run.config.collection, run.run_id)
    remember(storage, paths, run.config)
    configuration = [paths.config] if storage.exists(paths.config) else []
    tracking = track(storage, run, [*configuration, *report_files(paths, run.selected.k, run.config)])
    document = {**run.document, "tracking": asdict(tracking)}
    if tracking.run_id is None and "tracking" in run.document:
        return document
    write_json(storage, paths.marker, document)
    finished = finish(storage, run.config, tracking, paths.marker)
    if finished != tracking:
        document["tracking"] = asdict(finished)
        write_json(storage, paths.marker, document)
    return document
