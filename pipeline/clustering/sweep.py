"""Trials over K, and which one to keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.clustering.trial import Trial, TrialResult
from pipeline.config import ClusteringConfig, JobConfig, digest, dump_config
from pipeline.errors import ConfigError
from pipeline.layout import RunPaths
from pipeline.progress import say
from pipeline.records import Crawl
from pipeline.shards import shard_keys
from pipeline.storage import Storage, read_json, write_json

NOT_IN_DIGEST = {"select_k", "workers", "cpus_per_worker", "device", "checkpoint_every_s", "max_failures"}
"""How a run is carried out or read, not what it computes: these may change when it continues."""


def open_run(storage: Storage, config: JobConfig, crawls: list[Crawl]) -> RunPaths:
    """The run of this configuration on these crawls; made if it does not exist.

    Raises ConfigError where the user's run id belongs to a run of another configuration or of other images.
    """
    identity: dict[str, Any] = {
        "images": [{"crawl_id": crawl.crawl_id, "digest": crawl.digest} for crawl in crawls],
        "clustering": config.clustering.model_dump(mode="json", exclude=NOT_IN_DIGEST),
    }
    paths = RunPaths(config.collection, config.run_id or f"run-{digest(identity)}")
    if not storage.exists(paths.identity):
        write_json(storage, paths.identity, identity)
        # An address may hold a password, and the next job may be tracked elsewhere.
        shown = config.model_copy(update={"tracking_uri": None})
        storage.write_bytes(paths.config, dump_config(shown).encode())
        return paths
    found = read_json(storage, paths.identity)
    if found != identity:
        other = [
            f"clustering.{name}"
            for name, value in identity["clustering"].items()
            if found["clustering"].get(name) != value
        ]
        if found["images"] != identity["images"]:
            other.append("the images")
        raise ConfigError(
            f"run_id {paths.run_id!r}: a run of that name exists and differs in {', '.join(other)}; "
            "choose another --run-id, or leave it out"
        )
    return paths


def sweep(
    storage: Storage, paths: RunPaths, config: ClusteringConfig, crawls: list[Crawl], train: bool
) -> list[TrialResult]:
    """The results of all trials, ordered by K; those that are done already are not run again.

    Args:
        train: whether to run the missing trials; without it they are a ConfigError.
    """
    trials = [Trial(k, config.seed) for k in sorted(config.k)]
    missing = [trial for trial in trials if not storage.exists(paths.trial_marker(trial.name))]
    if missing and not train:
        names = ", ".join(trial.name for trial in missing)
        raise ConfigError(f"run {paths.run_id}: {names} not trained yet; run the cluster stage first")
    if len(missing) < len(trials):
        say("cluster", f"{len(trials) - len(missing)} of {len(trials)} trials of {paths.run_id} are done already")
    if missing:
        from pipeline.clustering.trainer import train_trials

        images = sum(crawl.accepted for crawl in crawls)
        say("cluster", f"{len(missing)} trials on {images} images with {config.workers} workers: {paths.run_id}")
        train_trials(storage, paths, config, missing, shard_keys(crawls))
    return [TrialResult.from_json(read_json(storage, paths.trial_marker(trial.name))) for trial in trials]


def check_k(config: ClusteringConfig, images: int, what: str) -> None:
    """Raise ConfigError where some K exceeds the number of `images`, which are described as `what`."""
    if max(config.k) > images:
        raise ConfigError(f"clustering.k: {max(config.k)} is above the {images} {what}; choose a smaller k")


def select(results: Sequence[TrialResult], select_k: int | None) -> tuple[TrialResult, str]:
    """The trial to keep, and why: the user's K, or the elbow of the loss over K."""
    if select_k is not None:
        return next(result for result in results if result.k == select_k), "chosen by the user"
    if len(results) == 1:
        return results[0], "the only trial"
    ordered = sorted(results, key=lambda result: result.k)
    return ordered[elbow([result.k for result in ordered], [result.loss for result in ordered])], "elbow of the loss"


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
