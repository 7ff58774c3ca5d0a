"""The sweep: trains one trial for each K and seed, and selects the trial to keep."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.clustering.earlier_run import earlier_checkpoint
from pipeline.clustering.halving import halve
from pipeline.clustering.trial import Train, Trial, TrialResult, TrialTask, best_of_each_k
from pipeline.config import LATEST, ClusteringConfig, JobConfig, digest, dump_config
from pipeline.console import counted, duration, say
from pipeline.errors import ConfigError, StorageError
from pipeline.paths import RunPaths
from pipeline.records import CHANNELS, Crawl
from pipeline.shards import shard_keys
from pipeline.storage import Storage, read_json, write_json

NOT_IN_IDENTITY = {
    "gpus_per_worker",
    "halving",
    "k",
    "seed",
    "seeds",
    "select_k",
    "workers",
    "cpus_per_worker",
    "device",
    "checkpoint_every_s",
    "collective_timeout_s",
    "max_failures",
}
"""Settings that may differ between jobs on the same run: the choice of trials, the choice of the kept trial, and the
resources of training."""


def check_run_id(storage: Storage, config: JobConfig) -> None:
    """Raise ConfigError if the user's run id belongs to a run with another configuration."""
    if config.run_id and storage.exists((paths := RunPaths(config.collection, config.run_id)).identity):
        requested = _identifying_settings(config.clustering)
        if requested["warm_start"] == LATEST:  # resolved after ingest
            del requested["warm_start"]
        _compare(paths, _stored_identity(storage, paths)["clustering"], requested, "clustering.")


def open_run(storage: Storage, config: JobConfig, crawls: list[Crawl]) -> RunPaths:
    """Return the run of this configuration on these crawls; create it if it does not exist.

    Raises ConfigError if the user's run id belongs to a run with another configuration or with other images.
    """
    # Digests and not ids of crawls: a crawl without new images, or the same images from elsewhere, changes nothing.
    images = sorted(crawl.digest for crawl in crawls if crawl.accepted)
    identity: dict[str, Any] = {"images": images, "clustering": _identifying_settings(config.clustering)}
    paths = RunPaths(config.collection, config.run_id or f"run-{digest(identity)}")
    if not storage.exists(paths.identity):
        # The tracking URI may contain a password, and may differ in the next job.
        stored_config = config.model_copy(update={"tracking_uri": None})
        storage.write_bytes(paths.config, dump_config(stored_config).encode())
        write_json(storage, paths.identity, identity)
        return paths
    stored = _stored_identity(storage, paths)
    _compare(paths, stored["clustering"], identity["clustering"], "clustering.")
    _compare(paths, {"the images": stored["images"]}, {"the images": images}, "")
    return paths


def _identifying_settings(config: ClusteringConfig) -> dict[str, Any]:
    """Return the settings that must be equal in all jobs on the same run."""
    return config.model_dump(mode="json", exclude=NOT_IN_IDENTITY)


def _stored_identity(storage: Storage, paths: RunPaths) -> dict[str, Any]:
    stored = read_json(storage, paths.identity)
    if not {"images", "clustering"} <= set(stored):
        raise StorageError(
            f"{storage.uri(paths.identity)}: expected images and clustering; delete the folder of this run"
        )
    return stored


def _compare(paths: RunPaths, stored: dict[str, Any], requested: dict[str, Any], section: str) -> None:
    """Raise ConfigError if the stored run differs in any of the `requested` values."""
    different = [section + name for name, value in requested.items() if stored.get(name) != value]
    if different:
        raise ConfigError(
            f"run_id {paths.run_id!r}: a run with this id exists and differs in {', '.join(different)}; "
            "choose another --run-id, or leave it out"
        )


def sweep(
    storage: Storage, paths: RunPaths, config: ClusteringConfig, crawls: list[Crawl], train: Train | None
) -> list[TrialResult]:
    """Train the trials that are not done yet, and return the results of all trials, ordered by K and seed.

    Args:
        storage: workspace.
        paths: paths of the run.
        config: trials and their settings.
        crawls: crawls whose images are clustered.
        train: function that trains the missing trials; without it, a missing trial is a ConfigError.
    """
    tasks = _tasks(storage, paths, config, crawls)
    missing = [task for task in tasks if not task.is_done()]
    if missing and train is None and not config.halving:
        names = ", ".join(task.trial.name for task in missing)
        raise ConfigError(f"run {paths.run_id}: these trials are not trained: {names}; run the cluster stage first")
    if len(missing) < len(tasks):
        done = len(tasks) - len(missing)
        say("cluster", f"{done} of {counted(len(tasks), 'trial')} of {paths.run_id} done already")
    if missing and train is not None:
        images = counted(sum(crawl.accepted for crawl in crawls), "image")
        workers = f", {config.workers} workers each" if config.workers > 1 else ""
        say("cluster", f"{paths.run_id}: training {counted(len(missing), 'trial')} on {images}{workers}")
        started = time.monotonic()
        if config.halving:
            halve([_with_start(task) for task in tasks], train)
        else:
            train([_with_start(task) for task in missing])
        trained = sum(task.is_done() for task in missing)
        say("cluster", f"{counted(trained, 'trial')} trained in {duration(time.monotonic() - started)}")
    finished = [task for task in tasks if task.is_done()]
    if absent := set(config.k) - {task.trial.k for task in finished}:
        raise ConfigError(f"run {paths.run_id}: no trial of k {sorted(absent)} is trained; run the cluster stage first")
    return [_result(task) for task in finished]


def _tasks(storage: Storage, paths: RunPaths, config: ClusteringConfig, crawls: list[Crawl]) -> list[TrialTask]:
    """Return the tasks of all trials of the run, ordered by K and seed."""
    keys = shard_keys(crawls)
    decoded_bytes = sum(crawl.accepted * crawl.image_size**2 * CHANNELS[crawl.color_mode] for crawl in crawls)
    return [
        TrialTask(storage, paths, config, Trial(k, config.seed + i), keys, decoded_bytes)
        for k in sorted(config.k)
        for i in range(config.seeds)
    ]


def _with_start(task: TrialTask) -> TrialTask:
    """Return `task` with the model of the earlier run that it starts from, if the configuration names one."""
    run_id = task.config.warm_start
    if run_id is None or task.is_done():
        return task
    return replace(task, earlier_key=earlier_checkpoint(task.storage, task.paths.collection, run_id, task.trial.k))


def _result(task: TrialTask) -> TrialResult:
    try:
        return TrialResult.from_json(read_json(task.storage, task.marker_key))
    except (KeyError, TypeError) as error:
        raise StorageError(
            f"{task.storage.uri(task.marker_key)}: not a trial's result; delete it and run the same command again"
        ) from error


def check_k(config: ClusteringConfig, images: int, what: str) -> None:
    """Raise ConfigError if some K exceeds the number of `images`; `what` describes these images in the message."""
    if max(config.k) > images:
        raise ConfigError(f"clustering.k: {max(config.k)} is above the {images} {what}; choose a smaller k")


def select(results: Sequence[TrialResult], select_k: int | None) -> tuple[TrialResult, str]:
    """Return the trial to keep, and the reason.

    For each K, only the seed with the lowest loss is considered. K is the user's `select_k`, or else the elbow of the
    loss.
    """
    best = best_of_each_k(results)
    if select_k is not None:
        kept, why = next(result for result in best if result.k == select_k), "chosen by the user"
    elif len(best) == 1:
        kept, why = best[0], "the only K"
    else:
        losses = [result.loss for result in best]
        kept = best[elbow([result.k for result in best], losses)]
        why = "lowest loss" if kept.loss == min(losses) else "elbow of the loss"
    seeds = sum(result.k == kept.k for result in results)
    return kept, f"{why}; seed {kept.seed} has the lowest loss of {seeds}" if seeds > 1 else why


def elbow(k: Sequence[int], losses: Sequence[float]) -> int:
    """Return the index of the elbow of `losses` over increasing `k`.

    The elbow is the point farthest below the line through both ends. Both axes are first scaled to [0, 1], so that
    units do not matter. If no point is below the line (with two trials, or a loss that falls faster and faster), the
    elbow is the point with the lowest loss.
    """
    x, y = np.asarray(k, float), np.asarray(losses, float)
    lowest = int(y.argmin())
    if len(x) < 3 or y.max() == y.min():
        return lowest
    x = (x - x[0]) / (x[-1] - x[0])
    y = (y - y.min()) / (y.max() - y.min())
    below = y[0] + (y[-1] - y[0]) * x - y
    best = int(below.argmax())
    return best if below[best] > 1e-9 else lowest
