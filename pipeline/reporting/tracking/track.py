"""Record a finished report in MLflow, and store in its ``run.json`` where it is recorded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.config import JobConfig
from pipeline.masking import mask
from pipeline.reporting.report_files import report_files
from pipeline.reporting.run import Run
from pipeline.reporting.tracking.locations import add_tracking_location
from pipeline.reporting.tracking.runs import Tracking, finish, track_run
from pipeline.reporting.tracking.server import tracking_uri
from pipeline.storage import Storage, write_json


def is_recorded(storage: Storage, config: JobConfig, document: dict[str, Any]) -> bool:
    """Whether `document`, the content of ``run.json``, states that everything is recorded where `config` requires."""
    tracking = Tracking(**document["tracking"])
    complete = tracking.error is None and tracking.model is not None
    return complete and tracking.uri == mask(tracking_uri(storage, config))


def record_run(storage: Storage, run: Run) -> dict[str, Any]:
    """Record `run` in MLflow; failures are printed as a warning.

    Returns:
        The content of ``run.json``, which is written last. If nothing could be recorded, the file in storage still
        states where the run was recorded before.
    """
    paths = run.paths
    add_tracking_location(storage, paths, run.config)
    config_files = [paths.config] if storage.exists(paths.config) else []
    tracking = track_run(storage, run, [*config_files, *report_files(run)])
    document = {**run.document, "tracking": asdict(tracking)}
    if tracking.run_id is None and "tracking" in run.document:
        return document
    write_json(storage, paths.marker, document)
    finished = finish(storage, run.config, tracking, paths.marker)
    if finished != tracking:
        document["tracking"] = asdict(finished)
        write_json(storage, paths.marker, document)
    return document
