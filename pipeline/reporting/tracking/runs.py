"""A clustering run in MLflow: one parent run, with one nested run per trial.

Tracking is optional: its failures are printed as a warning and never fail the job. Records of an earlier attempt at
the same run are replaced, so that a restart does not duplicate them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.clustering.trial import TrialResult, best_of_each_k
from pipeline.config import JobConfig
from pipeline.console import say
from pipeline.errors import StorageError
from pipeline.masking import mask
from pipeline.reporting.run import Run
from pipeline.reporting.tracking.artifact_location import artifact_location, move_experiment
from pipeline.reporting.tracking.dataset import data_digest, dataset_input
from pipeline.reporting.tracking.kept_model import track_model, untrack_model
from pipeline.reporting.tracking.recording import RUN_TAG, WORKSPACE_TAG, Recording, source_tags
from pipeline.reporting.tracking.server import (
    all_pages,
    client_of,
    database_lock,
    database_path,
    default_uri,
    error_line,
    failures_as_warning,
    is_server,
    remove_quoted_folder,
    tracking_uri,
)
from pipeline.storage import Storage

SCORES = ("accuracy", "nmi")
"""Names of the metrics that are logged if images have labels."""

_METRICS_PER_CALL, _PARAMS_PER_CALL = 1000, 100  # limits of an MLflow server
_MAX_FAILED_UPLOADS = 3  # then stop uploading, since each upload to an unreachable artifact store takes long


@dataclass(frozen=True)
class Tracking:
    """Where a run was recorded, or why it was not; stored in ``run.json``."""

    uri: str
    """URI of the tracking server or database, without credentials."""
    run_id: str | None = None
    """Id of the parent run in MLflow; it can be set even if some artifacts are missing. None if there is no run."""
    error: str | None = None
    """Failures on one line, or None; the next start of the same job tries again."""
    model: str | None = None
    """URI of the registered version of the model, for ``mlflow.pyfunc.load_model``; None if it is not registered."""


def track_run(storage: Storage, run: Run, artifacts: Sequence[str]) -> Tracking:
    """Record a reported run and its trials, except ``run.json``; the parent run stays open until `finish`.

    Args:
        storage: workspace with the artifacts.
        run: the run to record. The parent run is named after it; experiment, data set and registered model are named
            after its collection. Each trial becomes a nested run with its metrics over iterations.
        artifacts: keys of the files to upload to the parent run.

    Returns:
        Where the run was recorded, or the error. Failures are printed as a warning and not raised, and an artifact that
        cannot be uploaded does not prevent the upload of others.
    """
    config, name = run.config, run.collection
    uri = tracking_uri(storage, config)
    redacted = mask(uri)
    with failures_as_warning(uri) as failures:
        with database_lock(uri):
            client = client_of(uri)
            experiment = _experiment(client, name, storage, uri)
        owner = {RUN_TAG: run.run_id, WORKSPACE_TAG: storage.root, "collection": name}
        _delete_earlier(client, experiment, owner)
        tags = owner | source_tags(run.document["versions"].get("commit"))
        metrics = [trial["metrics"] or {} for trial in run.document["trials"]]
        scores = [{score: trial[score] for score in SCORES if trial} for trial in metrics]
        parent = _create_parent(client, experiment, tags, run)
        recording = Recording(client, experiment, parent, owner, storage, run)
        _log_job(recording, scores[run.results.index(run.selected)])
        for result, score in zip(run.results, scores, strict=True):
            _track_trial(recording, tags, result, score)
        failures.extend(_upload(client, parent, storage, run.paths.folder, artifacts))
        model = None
        if len(failures) < _MAX_FAILED_UPLOADS:
            try:
                model = track_model(recording)
            except Exception as error:  # artifact repositories raise various types of exceptions
                failures.append(f"model: {error_line(error)}")
        if not failures:
            say("track", f"MLflow run {parent} in {redacted}")
        return Tracking(redacted, parent, "; ".join(failures) or None, model)
    return Tracking(redacted, error="; ".join(failures))


def finish(storage: Storage, config: JobConfig, tracking: Tracking, marker: str) -> Tracking:
    """Upload ``run.json``, the file `marker`, to the recorded run and close it; return the updated `tracking`."""
    if tracking.run_id is None:
        return tracking
    uri = tracking_uri(storage, config)
    with failures_as_warning(uri) as failures:
        client = client_of(uri)
        failures.extend(_upload(client, tracking.run_id, storage, str(Path(marker).parent), [marker]))
        client.set_terminated(tracking.run_id)
    errors = [tracking.error, *failures] if tracking.error else failures
    return replace(tracking, error="; ".join(errors) or None)


def untrack(storage: Storage, uri: str, collection: str, run_id: str, workspace: str | None = None) -> None:
    """Delete all records and artifacts of the run `run_id` from the tracking server or database `uri`.

    Args:
        storage: workspace of the run.
        uri: URI of the server or database; a database that does not exist is not created.
        collection: name of the collection.
        run_id: id of the run.
        workspace: root of the workspace when the run was recorded. Default: its current root.

    Raises StorageError if some of them may remain.
    """
    database = database_path(uri)
    if database is not None and not database.exists():
        if uri == default_uri(storage):
            return
        raise StorageError(
            f"{uri} is missing, so the artifacts of run {run_id} cannot be found and deleted; restore the database, or "
            "name the one that replaces it with --tracking-uri"
        )
    try:
        with database_lock(uri):
            client = client_of(uri)
            experiment = client.get_experiment_by_name(collection)
        if experiment is not None:
            owner = {RUN_TAG: run_id, WORKSPACE_TAG: workspace or storage.root}
            untrack_model(client, experiment.experiment_id, collection, owner)
            deleted = _delete_earlier(client, experiment.experiment_id, owner)
            if uri == default_uri(storage):  # the database and its artifacts may have been moved with the workspace
                for key in list(storage.list(f"mlartifacts/{collection}")):
                    if key.split("/")[2] in deleted:
                        storage.delete(key)
    except Exception as error:  # MLflow's stores raise various types of exceptions
        raise StorageError(
            f"{mask(uri)}: the records of run {run_id} cannot be deleted ({error_line(error)}); run the "
            "same command again, with --tracking-uri if the server has moved or requires a password"
        ) from error
    finally:
        remove_quoted_folder(uri)


def _create_parent(client: Any, experiment: str, tags: dict[str, str], run: Run) -> str:
    """Create the parent run in MLflow; return its id."""
    all_tags = {
        **tags,
        "crawl_ids": ", ".join(crawl.crawl_id for crawl in run.crawls),
        "data_digest": data_digest(run.crawls),
        "selected_k": str(run.selected.k),
        "selected_seed": str(run.selected.seed),
    }
    return str(client.create_run(experiment, tags=all_tags, run_name=run.run_id).info.run_id)


def _log_job(recording: Recording, scores: Mapping[str, float]) -> None:
    """Log configuration, data set and metrics of the run to the parent run; `scores` are those of the kept trial."""
    client, parent, run = recording.client, recording.parent, recording.run
    crawls, selected = run.crawls, run.selected
    points = [("images", float(sum(crawl.accepted for crawl in crawls)), 0), ("final_loss", selected.loss, 0)]
    points += [("final_loss_by_k", result.loss, result.k) for result in best_of_each_k(run.results)]
    points += [(name, value, 0) for name, value in scores.items()]
    for step, crawl in enumerate(crawls):
        ingested = {"records": crawl.records, "accepted": crawl.accepted, **crawl.statistics}
        ingested |= {f"rejected.{reason}": n for reason, n in crawl.rejected.items()}
        points += [(f"ingest.{name}", float(value), step) for name, value in ingested.items()]
    _log(client, parent, _flat(run.config.model_dump(mode="json", exclude={"tracking_uri"})), points)
    client.log_inputs(parent, [dataset_input(recording.storage, run.collection, crawls)])


def _track_trial(recording: Recording, tags: dict[str, str], result: TrialResult, scores: Mapping[str, float]) -> None:
    """Record one trial as a nested run."""
    client, kept = recording.client, recording.run.selected
    tags = {**tags, "mlflow.parentRunId": recording.parent, "selected": str(result == kept).lower()}
    now_ms = int(time.time() * 1000)
    start_ms = now_ms - int(result.seconds * 1000)
    created = client.create_run(recording.experiment, start_time=start_ms, tags=tags, run_name=result.trial.name)
    run_id = created.info.run_id
    points = [
        (name, float(value), point.iteration)
        for point in result.history
        for name, value in asdict(point).items()
        if name != "iteration"
    ]
    totals = {"final_loss": result.loss, "image_passes": result.image_passes, "seconds": result.seconds}
    totals |= {"iterations": result.iterations, **scores}
    points += [(name, float(value), result.iterations) for name, value in totals.items()]
    settings = {**recording.run.config.clustering.model_dump(mode="json"), "k": result.k, "seed": result.seed}
    _log(client, run_id, _flat({"clustering": settings}), points)
    client.set_terminated(run_id, end_time=now_ms)


def _log(client: Any, run: str, params: dict[str, str], points: Sequence[tuple[str, float, int]]) -> None:
    from mlflow.entities import Metric, Param

    now_ms = int(time.time() * 1000)
    all_params = [Param(name, value) for name, value in params.items()]
    for start in range(0, len(all_params), _PARAMS_PER_CALL):
        client.log_batch(run, params=all_params[start : start + _PARAMS_PER_CALL])
    metrics = [Metric(name, value, now_ms, step) for name, value, step in points]
    for start in range(0, len(metrics), _METRICS_PER_CALL):
        client.log_batch(run, metrics=metrics[start : start + _METRICS_PER_CALL])


def _upload(client: Any, run: str, storage: Storage, folder: str, keys: Sequence[str]) -> list[str]:
    """Upload the files `keys` under their names relative to `folder`; return one line per failure."""
    failures: list[str] = []
    for key in keys:
        name = Path(key).relative_to(folder)
        try:
            with tempfile.TemporaryDirectory() as local:
                path = Path(local) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(storage.read_bytes(key))
                client.log_artifacts(run, local)
        except Exception as error:  # artifact repositories raise various types of exceptions
            failures.append(f"{name}: {error_line(error)}")
            if len(failures) == _MAX_FAILED_UPLOADS:
                break
    return failures


def _experiment(client: Any, name: str, storage: Storage, uri: str) -> str:
    """Return the id of the experiment `name`, which is created if it does not exist, and restored if it was deleted."""
    from mlflow.entities import LifecycleStage

    # A server determines where artifacts are stored.
    location = None if is_server(uri) else artifact_location(storage, name)
    if (experiment := client.get_experiment_by_name(name)) is None:
        return str(client.create_experiment(name, artifact_location=location))
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        client.restore_experiment(experiment.experiment_id)
        say("track", f"the experiment {name}, which was deleted in MLflow, is restored to record this run")
    if uri == default_uri(storage) and location is not None and experiment.artifact_location != location:
        move_experiment(uri, experiment.experiment_id, experiment.artifact_location, location)
        say("track", f"the workspace was moved: artifacts of {name} are stored and found below {storage.root}")
    return str(experiment.experiment_id)


def _delete_earlier(client: Any, experiment: str, owner: dict[str, str]) -> set[str]:
    """Delete the MLflow runs of earlier attempts with the tags `owner`; return their ids.

    MLflow only marks a run as deleted, so its artifacts, which can contain photos, are deleted first.
    """
    from mlflow.entities import LifecycleStage, ViewType
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    query, view = f"tags.`{RUN_TAG}` = '{owner[RUN_TAG]}'", ViewType.ALL
    runs = all_pages(lambda token: client.search_runs([experiment], query, run_view_type=view, page_token=token))
    earlier = [run.info for run in runs if run.data.tags.get(WORKSPACE_TAG) == owner[WORKSPACE_TAG]]
    for run in earlier:
        get_artifact_repository(run.artifact_uri, tracking_uri=client.tracking_uri).delete_artifacts()
        if run.lifecycle_stage == LifecycleStage.ACTIVE:
            client.delete_run(run.run_id)
    return {run.run_id for run in earlier}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat
