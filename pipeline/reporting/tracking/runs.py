"""The job in MLflow: one run per job, one nested run per trial.

Tracking is a courtesy to the user: whatever goes wrong with it costs a warning, never the job. What an earlier
attempt at the same run left there is replaced, so that a restart never doubles it.
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
from pipeline.paths import RunPaths
from pipeline.reporting.run import PastRun
from pipeline.reporting.tracking.dataset import data_digest, dataset_input
from pipeline.reporting.tracking.kept_model import track_model, untrack_model
from pipeline.reporting.tracking.server import (
    all_of,
    client_of,
    default_uri,
    first_use,
    guarded,
    is_server,
    line,
    tracking_uri,
    without_credentials,
)
from pipeline.reporting.tracking.tags import RUN_TAG, WORKSPACE_TAG, source_tags
from pipeline.storage import Storage

SCORES = ("accuracy", "nmi")
"""What is logged of a trial's metrics."""

_METRICS_PER_CALL, _PARAMS_PER_CALL = 1000, 100  # what an MLflow server accepts at once
_FAILED_UPLOADS = 3  # after which the others are not tried: a dead artifact store takes its time for each


@dataclass(frozen=True)
class Tracking:
    """Where a job was recorded, or why it was not; kept in ``run.json``."""

    uri: str
    """Tracking server or database, without credentials."""
    run_id: str | None = None
    """MLflow's id of the parent run; there may be one although some of its artifacts are missing."""
    error: str | None = None
    """What went wrong, on one line; the next start of the same job tries again."""
    model: str | None = None
    """Address of the model, for ``mlflow.pyfunc.load_model``: its version in the registry."""


def track(storage: Storage, run: PastRun, artifacts: Sequence[str]) -> Tracking:
    """Record a reported run and its trials, all but ``run.json``; the parent run stays open until `finish`.

    Args:
        storage: workspace that holds the artifacts.
        run: what to record. Parent run, experiment, data set and registered model are named after it and its
            collection; each trial becomes a nested run with its metrics over iterations.
        artifacts: keys of the files to attach to the parent run.

    Returns:
        Where it was recorded, or the error; a fault is printed as a warning and not raised, and one artifact that
        cannot be attached leaves the others alone.
    """
    config, name = run.config, run.config.collection
    uri = tracking_uri(storage, config)
    shown = without_credentials(uri)
    with guarded(uri) as faults:
        with first_use(uri):
            client = client_of(uri)
            experiment = _experiment(client, name, storage, uri)
        common = {RUN_TAG: run.run_id, WORKSPACE_TAG: storage.root, "collection": name}
        described = common | source_tags(run.document["versions"].get("commit"))
        _delete_earlier(client, experiment, common)
        metrics = [trial["metrics"] or {} for trial in run.document["trials"]]
        scores = [{score: trial[score] for score in SCORES if trial} for trial in metrics]
        kept = scores[run.results.index(run.selected)]
        parent = _track_job(client, experiment, described, run, kept)
        client.log_inputs(parent, [dataset_input(storage, name, run.crawls)])
        for result, score in zip(run.results, scores, strict=True):
            _track_trial(client, experiment, parent, described, config, result, score, result == run.selected)
        faults.extend(_attach(client, parent, storage, RunPaths(name, run.run_id).folder, artifacts))
        model = None
        if len(faults) < _FAILED_UPLOADS:
            try:
                model = track_model(client, experiment, parent, common, storage, run)
            except Exception as error:  # artifact repositories raise whatever their clients raise
                faults.append(f"model: {line(error)}")
        if not faults:
            say("track", f"MLflow run {parent} in {shown}")
        return Tracking(shown, parent, "; ".join(faults) or None, model)
    return Tracking(shown, error="; ".join(faults))


def finish(storage: Storage, config: JobConfig, tracking: Tracking, marker: str) -> Tracking:
    """Attach ``run.json``, the file `marker`, to a recorded run and close it; return what `tracking` is now."""
    if tracking.run_id is None:
        return tracking
    uri = tracking_uri(storage, config)
    with guarded(uri) as faults:
        client = client_of(uri)
        faults.extend(_attach(client, tracking.run_id, storage, str(Path(marker).parent), [marker]))
        client.set_terminated(tracking.run_id)
    errors = [tracking.error, *faults] if tracking.error else faults
    return replace(tracking, error="; ".join(errors) or None)


def untrack(storage: Storage, uri: str, collection: str, run_id: str, workspace: str | None = None) -> None:
    """Delete what was recorded of the run `run_id` at the tracking server or database `uri`, artifacts included.

    Args:
        storage: workspace of the run.
        uri: of the server or database, which is not made where it does not exist.
        collection: of the run.
        run_id: of the run.
        workspace: root of the workspace when the run was recorded. Default: as it is now.

    Raises StorageError where some of it may be left.
    """
    database = uri.removeprefix("sqlite:///")
    if database != uri and not Path(database).exists():
        if uri == default_uri(storage):
            return
        raise StorageError(f"{uri}: is gone, and with it what tells where the artifacts of run {run_id} are")
    try:
        with first_use(uri):
            client = client_of(uri)
            experiment = client.get_experiment_by_name(collection)
        if experiment is not None:
            common = {RUN_TAG: run_id, WORKSPACE_TAG: workspace or storage.root}
            untrack_model(client, experiment.experiment_id, collection, common)
            deleted = _delete_earlier(client, experiment.experiment_id, common)
            if uri == default_uri(storage):  # which may have been moved, and the artifacts with it
                for key in list(storage.list(f"mlartifacts/{collection}")):
                    if key.split("/")[2] in deleted:
                        storage.delete(key)
    except Exception as error:  # stores raise whatever their clients raise
        raise StorageError(
            f"{without_credentials(uri)}: what it has of run {run_id} cannot be deleted ({line(error)}); run the same "
            "command again, with --tracking-uri if it is found elsewhere by now or asks for a password"
        ) from error


def _track_job(client: Any, experiment: str, common: dict[str, str], run: PastRun, scores: Mapping[str, float]) -> str:
    crawls, selected = run.crawls, run.selected
    tags = {
        **common,
        "crawl_ids": ", ".join(crawl.crawl_id for crawl in crawls),
        "data_digest": data_digest(crawls),
        "selected_k": str(selected.k),
        "selected_seed": str(selected.seed),
    }
    parent: str = client.create_run(experiment, tags=tags, run_name=run.run_id).info.run_id
    points = [("images", float(sum(crawl.accepted for crawl in crawls)), 0), ("final_loss", selected.loss, 0)]
    points += [("final_loss_by_k", result.loss, result.k) for result in best_of_each_k(run.results)]
    points += [(name, value, 0) for name, value in scores.items()]
    for step, crawl in enumerate(crawls):
        ingested = {"records": crawl.records, "accepted": crawl.accepted, **crawl.statistics}
        ingested |= {f"rejected.{reason}": n for reason, n in crawl.rejected.items()}
        points += [(f"ingest.{name}", float(value), step) for name, value in ingested.items()]
    _log(client, parent, _flat(run.config.model_dump(mode="json", exclude={"tracking_uri"})), points)
    return parent


def _track_trial(
    client: Any,
    experiment: str,
    parent: str,
    common: dict[str, str],
    config: JobConfig,
    result: TrialResult,
    scores: Mapping[str, float],
    selected: bool,
) -> None:
    tags = {**common, "mlflow.parentRunId": parent, "selected": str(selected).lower()}
    now_ms = int(time.time() * 1000)
    start_ms = now_ms - int(result.seconds * 1000)
    run = client.create_run(experiment, start_time=start_ms, tags=tags, run_name=result.trial.name).info.run_id
    points = [
        (name, float(value), point.iteration)
        for point in result.history
        for name, value in asdict(point).items()
        if name != "iteration"
    ]
    totals = {"final_loss": result.loss, "image_passes": result.image_passes, "seconds": result.seconds}
    totals |= {"iterations": result.iterations, **scores}
    points += [(name, float(value), result.iterations) for name, value in totals.items()]
    settings = {**config.clustering.model_dump(mode="json"), "k": result.k, "seed": result.seed}
    _log(client, run, _flat({"clustering": settings}), points)
    client.set_terminated(run, end_time=now_ms)


def _log(client: Any, run: str, params: dict[str, str], points: Sequence[tuple[str, float, int]]) -> None:
    from mlflow.entities import Metric, Param

    now_ms = int(time.time() * 1000)
    entities = [Param(name, value) for name, value in params.items()]
    for start in range(0, len(entities), _PARAMS_PER_CALL):
        client.log_batch(run, params=entities[start : start + _PARAMS_PER_CALL])
    metrics = [Metric(name, value, now_ms, step) for name, value, step in points]
    for start in range(0, len(metrics), _METRICS_PER_CALL):
        client.log_batch(run, metrics=metrics[start : start + _METRICS_PER_CALL])


def _attach(client: Any, run: str, storage: Storage, folder: str, keys: Sequence[str]) -> list[str]:
    """Upload the files `keys`, named relative to `folder`; return what went wrong, a line per file."""
    faults: list[str] = []
    for key in keys:
        name = Path(key).relative_to(folder)
        try:
            with tempfile.TemporaryDirectory() as local:
                path = Path(local) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(storage.read_bytes(key))
                client.log_artifacts(run, local)
        except Exception as error:  # artifact repositories raise whatever their clients raise
            faults.append(f"{name}: {line(error)}")
            if len(faults) == _FAILED_UPLOADS:
                break
    return faults


def _experiment(client: Any, name: str, storage: Storage, uri: str) -> str:
    """Id of the experiment `name`, which is made where it does not exist."""
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    location = None  # a server knows where artifacts lie
    if not is_server(uri):
        place = storage.uri(f"mlartifacts/{name}")
        # A hashtag's sign would begin the fragment of an address.
        location = place.replace("#", "%23") if "://" in place else Path(place).as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def _delete_earlier(client: Any, experiment: str, common: dict[str, str]) -> set[str]:
    """Delete what an earlier attempt at the same run of the same workspace recorded; MLflow's ids of it.

    MLflow only marks a run as deleted; its artifacts, which may be full of photos, are deleted here, first.
    """
    from mlflow.entities import LifecycleStage, ViewType
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    query, everything = f"tags.`{RUN_TAG}` = '{common[RUN_TAG]}'", ViewType.ALL
    runs = all_of(lambda token: client.search_runs([experiment], query, run_view_type=everything, page_token=token))
    found = [run.info for run in runs if run.data.tags.get(WORKSPACE_TAG) == common[WORKSPACE_TAG]]
    for run in found:
        get_artifact_repository(run.artifact_uri, tracking_uri=client.tracking_uri).delete_artifacts()
        if run.lifecycle_stage == LifecycleStage.ACTIVE:
            client.delete_run(run.run_id)
    return {run.run_id for run in found}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat
