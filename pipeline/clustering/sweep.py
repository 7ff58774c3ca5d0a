"""Trials over K, and which one to keep."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.clustering.halving import halve
from pipeline.clustering.trial import Trial, TrialResult, best_of_each_k, is_done
from pipeline.config import LATEST, ClusteringConfig, JobConfig, digest, dump_config
from pipeline.console import rated, say
from pipeline.errors import ConfigError, StorageError
from pipeline.paths import RunPaths
from pipeline.records import CHANNELS, Crawl
from pipeline.shards import shard_keys
from pipeline.storage import Storage, read_json, write_json

if TYPE_CHECKING:
    from pipeline.clustering.trial_queue import Work

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
"""Which trials a run has (their names say it) and how it is carried out or read: these may change from job to job."""


def check_run_id(storage: Storage, config: JobConfig) -> None:
    """Raise ConfigError where the user's run id belongs to a run of another configuration."""
    if config.run_id and storage.exists((paths := RunPaths(config.collection, config.run_id)).identity):
        asked = _computed(config.clustering)
        if asked["warm_start"] == LATEST:  # which that is turns out after ingest
            del asked["warm_start"]
        _compare(paths, _identity(storage, paths)["clustering"], asked, "clustering.")


def open_run(storage: Storage, config: JobConfig, crawls: list[Crawl]) -> RunPaths:
    """The run of this configuration on these crawls; made if it does not exist.

    Raises ConfigError where the user's run id belongs to a run of another configuration or of other images.
    """
    # Not the crawls' ids: a crawl that brought nothing new, or the same images from elsewhere, changes nothing.
    images = sorted(crawl.digest for crawl in crawls if crawl.accepted)
    identity: dict[str, Any] = {"images": images, "clustering": _computed(config.clustering)}
    paths = RunPaths(config.collection, config.run_id or f"run-{digest(identity)}")
    if not storage.exists(paths.identity):
        # An address may hold a password, and the next job may be tracked elsewhere.
        shown = config.model_copy(update={"tracking_uri": None})
        storage.write_bytes(paths.config, dump_config(shown).encode())
        write_json(storage, paths.identity, identity)
        return paths
    found = _identity(storage, paths)
    _compare(paths, found["clustering"], identity["clustering"], "clustering.")
    _compare(paths, {"the images": found["images"]}, {"the images": images}, "")
    return paths


def _computed(config: ClusteringConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=NOT_IN_IDENTITY)


def _identity(storage: Storage, paths: RunPaths) -> dict[str, Any]:
    found = read_json(storage, paths.identity)
    if not {"images", "clustering"} <= set(found):
        raise StorageError(f"{storage.uri(paths.identity)}: incomplete; delete the folder of this run and start again")
    return found


def _compare(paths: RunPaths, found: dict[str, Any], asked: dict[str, Any], section: str) -> None:
    other = [section + name for name, value in asked.items() if found.get(name) != value]
    if other:
        raise ConfigError(
            f"run_id {paths.run_id!r}: a run of that name exists and differs in {', '.join(other)}; "
            "choose another --run-id, or leave it out"
        )


def _result(storage: Storage, paths: RunPaths, trial: Trial) -> TrialResult:
    key = paths.trial_marker(trial.name)
    try:
        return TrialResult.from_json(read_json(storage, key))
    except (KeyError, TypeError) as error:
        raise StorageError(f"{storage.uri(key)}: not a trial's result; delete it and run the same command") from error


def sweep(
    storage: Storage,
    paths: RunPaths,
    config: ClusteringConfig,
    crawls: list[Crawl],
    train: Callable[[list[Work]], None] | None,
) -> list[TrialResult]:
    """The results of all trials, ordered by K and seed; those that are done already are not run again.

    Args:
        train: trains the missing trials; without it they are a ConfigError.
    """
    trials = [Trial(k, config.seed + i) for k in sorted(config.k) for i in range(config.seeds)]
    missing = [trial for trial in trials if not is_done(storage, paths, trial)]
    if missing and train is None and not config.halving:
        names = ", ".join(trial.name for trial in missing)
        raise ConfigError(f"run {paths.run_id}: {names} not trained yet; run the cluster stage first")
    if len(missing) < len(trials):
        say("cluster", f"{len(trials) - len(missing)} of {len(trials)} trials of {paths.run_id} are done already")
    if missing and train is not None:
        images = sum(crawl.accepted for crawl in crawls)
        of = f"{images} images of {len(crawls)} crawl{'s' if len(crawls) > 1 else ''}"
        say("cluster", f"{len(missing)} trials on {of}, {config.workers} worker(s) each: {paths.run_id}")
        started = time.monotonic()
        train_until = _training(storage, paths, config, crawls, train)
        if config.halving:
            halve(storage, paths, config, trials, train_until)
        else:
            train_until(missing, None)
        trained = [_result(storage, paths, trial) for trial in missing if is_done(storage, paths, trial)]
        say("cluster", _speed(trained, time.monotonic() - started))
    done = [trial for trial in trials if is_done(storage, paths, trial)]
    if absent := set(config.k) - {trial.k for trial in done}:
        raise ConfigError(f"run {paths.run_id}: no trial of k {sorted(absent)} is trained; run the cluster stage first")
    return [_result(storage, paths, trial) for trial in done]


def _speed(results: list[TrialResult], seconds: float) -> str:
    """How fast trials that ended were trained, of which some may have begun in an earlier job, on one line."""
    images, training = sum(result.image_passes for result in results), sum(result.seconds for result in results)
    return f"{rated(len(results), 'trial', seconds)}; within a trial {rated(images, 'image', training)}"


def _training(
    storage: Storage,
    paths: RunPaths,
    config: ClusteringConfig,
    crawls: list[Crawl],
    train: Callable[[list[Work]], None],
) -> Callable[[list[Trial], int | None], None]:
    """Trains trials of this run until an iteration, or to the end, by `train`."""
    from pipeline.clustering.trial_queue import Work
    from pipeline.clustering.warm_start import earlier_checkpoint

    keys = shard_keys(crawls)
    decoded = sum(crawl.accepted * crawl.image_size**2 * CHANNELS[crawl.color_mode] for crawl in crawls)

    @functools.cache
    def earlier(k: int) -> str | None:
        run = config.warm_start
        return None if run is None else earlier_checkpoint(storage, paths.collection, run, k)

    def train_until(trials: list[Trial], until: int | None) -> None:
        train([Work(storage, paths, config, trial, keys, decoded, earlier(trial.k), until) for trial in trials])

    return train_until


def check_k(config: ClusteringConfig, images: int, what: str) -> None:
    """Raise ConfigError where some K exceeds the number of `images`, which are described as `what`."""
    if max(config.k) > images:
        raise ConfigError(f"clustering.k: {max(config.k)} is above the {images} {what}; choose a smaller k")


def select(results: Sequence[TrialResult], select_k: int | None) -> tuple[TrialResult, str]:
    """The trial to keep, and why.

    Of each K the seed with the lowest loss counts; among the values of K it is the user's, or the elbow of the loss.
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
    """Index of the elbow of `losses` over increasing `k`: the point farthest below the line through both ends.

    Both axes are scaled to [0, 1] first, so units do not matter. Where no point lies below the line (two trials, or
    a loss that falls faster and faster) it is the one with the lowest loss.
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
