"""Warm start: the earlier run of a collection that training starts from."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from pipeline.clustering.trial import Trial
from pipeline.config import LATEST, JobConfig
from pipeline.console import say
from pipeline.errors import ConfigError, StorageError
from pipeline.paths import RunPaths, runs_folder
from pipeline.storage import Storage, read_json

SHARED_SETTINGS = {
    "ingest": ("image_size", "color_mode"),
    "clustering": ("method", "transforms", "tps_grid", "morphology_kernel", "encoder", "encoder_px", "padding"),
}
"""Settings that must be equal in both runs, since the meaning of weights depends on them."""


@dataclass(frozen=True)
class EarlierRun:
    """A finished run of the collection."""

    run_id: str
    created_at: str
    crawls: frozenset[str]
    """Digests of the crawls that it was trained on."""
    trials: list[Trial]
    """Trials of the run, by increasing loss."""
    selected: Trial
    """Trial that the run reported."""


def with_earlier_run(storage: Storage, config: JobConfig, digests: set[str]) -> JobConfig:
    """Return `config` with ``latest`` replaced by the id of the latest earlier run, or by None if there is none.

    A run on exactly the crawls of `digests` is not an earlier run, so that the same job finds its run again.

    Args:
        storage: workspace.
        config: configuration of the job.
        digests: digests of the crawls that the job trains on.

    Raises:
        ConfigError: the requested run does not exist, or its model is different.
    """
    requested = config.clustering.warm_start
    if requested is None:
        return config
    if requested == LATEST:
        runs = [run for run in _finished(storage, config.collection) if run.crawls != digests]
        compatible = [run for run in runs if not _differences(storage, config, run.run_id)]
        chosen = max(compatible, key=lambda run: run.created_at).run_id if compatible else None
        say("cluster", f"warm start from {chosen}" if chosen else "no compatible earlier run: training from scratch")
        return _with_warm_start(config, chosen)
    if not storage.exists(RunPaths(config.collection, requested).marker):
        raise ConfigError(
            f"clustering.warm_start: {requested!r} is not a finished run of {config.collection}; "
            "choose another run, or latest"
        )
    if differences := _differences(storage, config, requested):
        raise ConfigError(
            f"clustering.warm_start: run {requested} differs in {', '.join(differences)}; choose another run, or latest"
        )
    return config


def earlier_checkpoint(storage: Storage, collection: str, run_id: str, k: int) -> str:
    """Return the key of the model that a trial of `k` starts from: the run's best trial of this K, or the selected one.

    Raises ConfigError if this model is missing.
    """
    run = _read(storage, RunPaths(collection, run_id))
    same_k = [trial for trial in run.trials if trial.k == k]
    trial = same_k[0] if same_k else run.selected
    key = RunPaths(collection, run_id).checkpoint(trial.name)
    if not storage.exists(key):
        raise ConfigError(f"clustering.warm_start: {storage.uri(key)} does not exist; choose another run, or none")
    return key


def _finished(storage: Storage, collection: str) -> list[EarlierRun]:
    keys = [key for key in storage.list(runs_folder(collection)) if key.endswith("/run.json")]
    return [_read(storage, RunPaths(collection, key.split("/")[-2])) for key in keys]


def _read(storage: Storage, paths: RunPaths) -> EarlierRun:
    document = read_json(storage, paths.marker)
    try:
        trials = [Trial(trial["k"], trial["seed"]) for trial in sorted(document["trials"], key=lambda t: t["loss"])]
        crawls = frozenset(crawl["digest"] for crawl in document["crawls"] if crawl["images"])
        selected = Trial(document["selected"]["k"], document["selected"]["seed"])
        return EarlierRun(paths.run_id, document["created_at"], crawls, trials, selected)
    except (KeyError, TypeError) as error:
        raise StorageError(
            f"{storage.uri(paths.marker)}: not the document of a run; delete the folder of this run, or report it again"
        ) from error


def _differences(storage: Storage, config: JobConfig, run_id: str) -> list[str]:
    """Return the names of the `SHARED_SETTINGS` in which the run and `config` differ, and of settings only the run has.

    A run with a setting that this version does not have was trained by another version, with other weights.
    """
    key = RunPaths(config.collection, run_id).config
    try:
        stored = yaml.safe_load(storage.read_bytes(key))
    except yaml.YAMLError as error:
        raise StorageError(f"{storage.uri(key)}: expected YAML; delete the folder of this run") from error
    requested = config.model_dump(mode="json")
    differences = [
        f"{section}.{name}"
        for section, names in SHARED_SETTINGS.items()
        for name in names
        if stored.get(section, {}).get(name) != requested[section][name]
    ]
    only_stored = set(stored.get("clustering", {})) - set(requested["clustering"])
    return differences + [f"clustering.{name}" for name in sorted(only_stored)]


def _with_warm_start(config: JobConfig, run_id: str | None) -> JobConfig:
    clustering = config.clustering.model_copy(update={"warm_start": run_id})
    return config.model_copy(update={"clustering": clustering})
