"""Read reported runs from storage."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.clustering.trial import Trial, TrialResult
from pipeline.config import JobConfig
from pipeline.errors import ConfigError, StorageError
from pipeline.paths import RunPaths, runs_folder
from pipeline.reporting.run import Run
from pipeline.reporting.tracking.locations import tracking_locations
from pipeline.reporting.tracking.server import default_uri
from pipeline.shards import complete_crawls
from pipeline.storage import Storage, read_json


def reported_run_ids(storage: Storage, collection: str) -> list[str]:
    """Return the ids of the reported runs of `collection`, in the order of their first reports."""
    markers = [key for key in storage.list(runs_folder(collection)) if key.endswith("/run.json")]
    created = {key.split("/")[-2]: str(read_json(storage, key).get("created_at")) for key in markers}
    return sorted(created, key=lambda run_id: (created[run_id], run_id))


def latest_run(storage: Storage, collection: str, tracked: str | None = None) -> Run:
    """Return the run of `collection` whose first report is the most recent one; see `load_run`.

    Raises ConfigError if the collection has no report.
    """
    run_ids = reported_run_ids(storage, collection)
    if not run_ids:
        raise ConfigError(
            f"collection {collection!r}: no report in {storage.uri(runs_folder(collection))}; cluster it first"
        )
    return load_run(storage, collection, run_ids[-1], tracked)


def load_run(
    storage: Storage,
    collection: str,
    run_id: str,
    tracked: str | None = None,
    document: dict[str, Any] | None = None,
) -> Run:
    """Return the reported run `run_id`.

    Args:
        storage: workspace.
        collection: name of the collection.
        run_id: id of the run.
        tracked: MLflow server or database. Default: where the run was tracked, without user and password.
        document: content of ``run.json`` if the report was withdrawn. Default: read from storage.

    Raises:
        ConfigError: the run has no report.
        StorageError: the files from which the report was made are missing or damaged.
    """
    paths = RunPaths(collection, run_id)
    if document is None:
        if not storage.exists(paths.marker):
            raise ConfigError(
                f"run {run_id!r}: no report of that name in {storage.uri(runs_folder(collection))}; check the run id"
            )
        document = read_json(storage, paths.marker)
    by_id = {crawl.crawl_id: crawl for crawl in complete_crawls(storage, collection)}
    for crawl in document.get("crawls", ()):
        if crawl["crawl_id"] not in by_id:
            raise StorageError(
                f"run {run_id}: its crawl {crawl['crawl_id']} is missing or incomplete; ingest it again, or finish the "
                "interrupted job that was changing it"
            )
    try:
        trials = [Trial(trial["k"], trial["seed"]) for trial in document["trials"]]
        results = [TrialResult.from_json(read_json(storage, paths.trial_marker(trial.name))) for trial in trials]
        selected = Trial(document["selected"]["k"], document["selected"]["seed"])
        return Run(
            run_id=run_id,
            config=_config(storage, paths, document, tracked),
            crawls=[by_id[crawl["crawl_id"]] for crawl in document["crawls"]],
            results=results,
            selected=next(result for result in results if result.trial == selected),
            reason=document["selected"]["reason"],
            document=document,
        )
    except (KeyError, TypeError, StopIteration, ValidationError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StorageError(
            f"{storage.uri(paths.folder)}: not a report of this version ({reason}); run the job that made it again"
        ) from error


def _config(storage: Storage, paths: RunPaths, document: dict[str, Any], tracked: str | None) -> JobConfig:
    """Return the configuration of the run's last report."""
    values = yaml.safe_load(storage.read_bytes(paths.config))
    clustering = {**values["clustering"], "k": sorted({trial["k"] for trial in document["trials"]}), "select_k": None}
    job = {"workspace": storage.root, "run_id": paths.run_id, "stages": ["report"]}
    reported = {"reporting": document["reporting"], "clustering": clustering}
    locations = tracking_locations(storage, paths)
    uri = tracked or (locations[-1].uri if locations else document["tracking"]["uri"])
    # Validation requires a tracking URI if the workspace is a bucket, so None is set only afterwards.
    config = JobConfig.model_validate({**values, **job, **reported, "tracking_uri": uri or default_uri(storage)})
    return config.model_copy(update={"tracking_uri": None}) if uri in {None, default_uri(storage)} else config
