"""Reports that are not recorded in MLflow yet, because its server was down or is a new one, are recorded now."""

from __future__ import annotations

from pipeline.config import JobConfig
from pipeline.console import counted, say
from pipeline.errors import ConfigError, PipelineError, StorageError
from pipeline.paths import runs_of
from pipeline.reporting.run import PastRun, past_run, reported
from pipeline.reporting.tracking.record import is_recorded, record
from pipeline.reporting.tracking.runs import Tracking
from pipeline.reporting.tracking.server import client_of, first_use, line, tracking_uri, without_credentials
from pipeline.storage import Storage


def sync_tracking(storage: Storage, config: JobConfig) -> None:
    """Record all reported runs of the collection of `config` that its server or database lacks, the earliest first.

    Where `config` names no tracking server, each run is recorded where its report wanted it. Nothing is drawn,
    assigned or trained again.

    Raises:
        ConfigError: no run of the collection was reported.
        PipelineError: a server does not answer, or some runs are not completely recorded; the others are.
    """
    run_ids = reported(storage, config.collection)
    if not run_ids:
        raise ConfigError(f"{storage.uri(runs_of(config.collection))}: no reported run; nothing to record")
    missing = 0
    for run_id in run_ids:
        try:
            run = past_run(storage, config.collection, run_id, config.tracking_uri)
        except StorageError as error:
            missing += 1
            say("sync", f"{run_id} cannot be recorded: {error}")
        else:
            if run.config.reporting.examples and not config.reporting.examples:
                missing += 1
                say("sync", f"{run_id} is not recorded: it shows photos, which the configuration does not want")
                continue
            missing += not _sync(storage, run)
    if missing:
        raise PipelineError(
            f"{missing} of {counted(len(run_ids), 'run')} not completely recorded; the same command tries again"
        )


def _sync(storage: Storage, run: PastRun) -> bool:
    """Whether all of `run` is recorded in the end; a line says what was done."""
    uri = tracking_uri(storage, run.config)
    shown = without_credentials(uri)
    if is_recorded(storage, run.config, run.document) and _is_there(uri, run.document["tracking"]["run_id"]):
        say("sync", f"{run.run_id} is in {shown} already")
        return True
    tracking = Tracking(**record(storage, run)["tracking"])
    if tracking.run_id is None:
        raise PipelineError(f"{run.run_id} cannot be recorded in {shown}; the same command tries again")
    complete = tracking.error is None
    say("sync", f"{run.run_id} is recorded in {shown}" if complete else f"{run.run_id} is not completely recorded")
    return complete


def _is_there(uri: str, run_id: str) -> bool:
    """Whether MLflow still has its run `run_id`: a database may have been lost since. Raises PipelineError."""
    try:
        with first_use(uri):
            return bool(client_of(uri).get_run(run_id).info.lifecycle_stage == "active")
    except Exception as error:  # stores raise whatever their clients raise
        if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise PipelineError(f"{without_credentials(uri)}: {line(error)}") from error
