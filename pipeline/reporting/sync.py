"""Record reports in MLflow that it lacks, because its server was down or is a new one."""

from __future__ import annotations

from pipeline.config import JobConfig
from pipeline.console import counted, say
from pipeline.errors import ConfigError, PipelineError, StorageError
from pipeline.masking import mask
from pipeline.paths import runs_folder
from pipeline.reporting.reported_runs import load_run, reported_run_ids
from pipeline.reporting.run import Run
from pipeline.reporting.tracking.runs import Tracking
from pipeline.reporting.tracking.server import client_of, database_lock, error_line, tracking_uri
from pipeline.reporting.tracking.track import is_recorded, record_run
from pipeline.storage import Storage


def sync_tracking(storage: Storage, config: JobConfig) -> None:
    """Record all reported runs of the collection of `config` that the server or database lacks, earliest first.

    If `config` has no tracking URI, each run is recorded where its report was meant to be recorded. Nothing is trained,
    assigned or drawn again.

    Raises:
        ConfigError: the collection has no reported run.
        PipelineError: a server does not answer, or some of the runs could not be recorded completely.
    """
    run_ids = reported_run_ids(storage, config.collection)
    if not run_ids:
        raise ConfigError(
            f"{storage.uri(runs_folder(config.collection))}: no reported run, so there is nothing to record"
        )
    missing = 0
    for run_id in run_ids:
        try:
            run = load_run(storage, config.collection, run_id, config.tracking_uri)
        except StorageError as error:
            missing += 1
            say("sync", f"{run_id} cannot be recorded: {error}")
        else:
            if run.config.reporting.examples and not config.reporting.examples:
                missing += 1
                say("sync", f"{run_id} is not recorded: it shows photos, but reporting.examples is false")
                continue
            missing += not _sync(storage, run)
    if missing:
        raise PipelineError(
            f"{missing} of {counted(len(run_ids), 'run')} not completely recorded; run the same command again"
        )


def _sync(storage: Storage, run: Run) -> bool:
    """Record `run` if necessary, and print the outcome; return whether it is completely recorded."""
    uri = tracking_uri(storage, run.config)
    redacted = mask(uri)
    if is_recorded(storage, run.config, run.document) and _exists(uri, run.document["tracking"]["run_id"]):
        say("sync", f"{run.run_id} is already in {redacted}")
        return True
    tracking = Tracking(**record_run(storage, run)["tracking"])
    if tracking.run_id is None:
        raise PipelineError(f"{run.run_id} cannot be recorded in {redacted}; run the same command again")
    complete = tracking.error is None
    say("sync", f"{run.run_id} is recorded in {redacted}" if complete else f"{run.run_id} is not completely recorded")
    return complete


def _exists(uri: str, run_id: str) -> bool:
    """Whether MLflow still has its run `run_id`, since a database may have been lost.

    Raises PipelineError if the server or database does not answer.
    """
    try:
        with database_lock(uri):
            return bool(client_of(uri).get_run(run_id).info.lifecycle_stage == "active")
    except Exception as error:  # MLflow's stores raise various types of exceptions
        if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise PipelineError(f"{mask(uri)} does not answer: {error_line(error)}") from error
