"""Reports that are there already, with all that it takes to make them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.clustering.trial import Trial, TrialResult
from pipeline.config import JobConfig
from pipeline.errors import ConfigError, StorageError
from pipeline.paths import RunPaths, runs_of
from pipeline.records import Crawl
from pipeline.reporting.tracking.locations import places_of
from pipeline.reporting.tracking.server import default_uri
from pipeline.shards import complete_crawls
from pipeline.storage import Storage, read_json


@dataclass(frozen=True)
class PastRun:
    """A run that was reported: the arguments of `stage.report`, and what it wrote."""

    run_id: str
    config: JobConfig
    crawls: list[Crawl]
    """Those that it was reported with, as they are now."""
    results: list[TrialResult]
    selected: TrialResult
    reason: str
    document: dict[str, Any]
    """Content of ``run.json``."""

    @property
    def first_reported_at(self) -> str:
        """When the run was reported for the first time, as ISO 8601 in UTC."""
        return str(self.document["created_at"])


def reported(storage: Storage, collection: str) -> list[str]:
    """Ids of the reported runs of `collection`, the one that was first reported first."""
    markers = [key for key in storage.list(runs_of(collection)) if key.endswith("/run.json")]
    created = {key.split("/")[-2]: str(read_json(storage, key).get("created_at")) for key in markers}
    return sorted(created, key=lambda run_id: (created[run_id], run_id))


def latest_run(storage: Storage, collection: str, tracked: str | None = None) -> PastRun:
    """The run of `collection` that was first reported last; see `past_run`. Raises ConfigError where there is none."""
    run_ids = reported(storage, collection)
    if not run_ids:
        raise ConfigError(
            f"collection {collection!r}: no report in {storage.uri(runs_of(collection))}; cluster it first"
        )
    return past_run(storage, collection, run_ids[-1], tracked)


def past_run(
    storage: Storage,
    collection: str,
    run_id: str,
    tracked: str | None = None,
    document: dict[str, Any] | None = None,
) -> PastRun:
    """The reported run `run_id`.

    Args:
        storage: workspace.
        collection: of the run.
        run_id: of the run.
        tracked: MLflow server or database. Default: where the run was tracked, without user and password.
        document: content of ``run.json``, where the report was withdrawn.

    Raises:
        ConfigError: there is no such report.
        StorageError: what it was made from is gone or damaged.
    """
    paths = RunPaths(collection, run_id)
    if document is None:
        if not storage.exists(paths.marker):
            raise ConfigError(f"run {run_id!r}: no report of that name in {storage.uri(runs_of(collection))}")
        document = read_json(storage, paths.marker)
    by_id = {crawl.crawl_id: crawl for crawl in complete_crawls(storage, collection)}
    for crawl in document.get("crawls", ()):
        if crawl["crawl_id"] not in by_id:
            raise StorageError(
                f"run {run_id}: its crawl {crawl['crawl_id']} is gone or not complete; ingest it again, or finish "
                "what is changing it"
            )
    try:
        trials = [Trial(trial["k"], trial["seed"]) for trial in document["trials"]]
        results = [TrialResult.from_json(read_json(storage, paths.trial_marker(trial.name))) for trial in trials]
        selected = Trial(document["selected"]["k"], document["selected"]["seed"])
        return PastRun(
            run_id=run_id,
            config=_config(storage, paths, document, tracked),
            crawls=[by_id[crawl["crawl_id"]] for crawl in document["crawls"]],
            results=results,
            selected=next(result for result in results if result.trial == selected),
            reason=document["selected"]["reason"],
            document=document,
        )
    except (KeyError, TypeError, StopIteration, ValidationError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())[:200]
        raise StorageError(
            f"{storage.uri(paths.folder)}: not a report of this version ({why}); run the job that made it again"
        ) from error


def _config(storage: Storage, paths: RunPaths, document: dict[str, Any], tracked: str | None) -> JobConfig:
    """The configuration of the run's last report."""
    values = yaml.safe_load(storage.read_bytes(paths.config))
    clustering = {**values["clustering"], "k": sorted({trial["k"] for trial in document["trials"]}), "select_k": None}
    asked = {"workspace": storage.root, "run_id": paths.run_id, "stages": ["report"]}
    reported = {"reporting": document["reporting"], "clustering": clustering}
    known = places_of(storage, paths)
    uri = tracked or (known[-1].uri if known else document["tracking"]["uri"])
    # Validated with some address: that of the workspace's own database is none where the workspace is a bucket.
    config = JobConfig.model_validate({**values, **asked, **reported, "tracking_uri": uri or default_uri(storage)})
    return config.model_copy(update={"tracking_uri": None}) if uri in {None, default_uri(storage)} else config
