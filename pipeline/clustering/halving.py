"""Seeds that fall behind are not trained to the end: successive halving (Jamieson and Talwalkar, 2016).

Seeds of one K are compared by the mean loss of their window after equally many iterations; the better half goes on.
Losses of different K are never compared: a larger K nearly always has the lower one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context

from pipeline.clustering.curriculum import Curriculum
from pipeline.clustering.patience import read_patiently
from pipeline.clustering.trial import Trial, TrialResult, is_done, loss_at
from pipeline.config import ClusteringConfig
from pipeline.console import say
from pipeline.paths import RunPaths
from pipeline.storage import Storage, read_json


def rungs(config: ClusteringConfig) -> list[int]:
    """Iterations after which half of the seeds stop, the last one half way through the longest possible training."""
    curriculum = Curriculum(config.schedule, config.transforms)
    if config.warm_start is not None:
        curriculum.begin_with_all()
    longest = curriculum.iterations_left()
    n = math.ceil(math.log2(config.seeds))
    found = [longest // 2 ** (n - index) for index in range(n)]
    return [iteration for iteration in found if iteration >= config.schedule.window]


def halve(
    storage: Storage,
    paths: RunPaths,
    config: ClusteringConfig,
    trials: list[Trial],
    train: Callable[[list[Trial], int | None], None],
) -> list[Trial]:
    """Train of each K all trials a little, and those that are worth it to the end; these, one of each K or more.

    What is decided follows from the losses in storage, so a job that is submitted again decides alike. No K waits for
    another. Raises, when all are done, what went wrong with the smallest K of those that failed.

    Args:
        train: trains trials until an iteration, or to the end, and leaves their losses there in storage; from several
            threads at once.
    """
    of_each_k = [[trial for trial in trials if trial.k == k] for k in sorted({trial.k for trial in trials})]
    threads = ThreadPoolExecutor(len(of_each_k), "halving")
    try:
        # In copies of this context, which says what lines on the console are about.
        ends = [
            threads.submit(copy_context().run, _halve_one, storage, paths, config, seeds, train) for seeds in of_each_k
        ]
        wait(ends)
    finally:
        threads.shutdown(wait=False)  # those of an interrupted job end with its workers
    return [trial for end in ends for trial in end.result()]


def _halve_one(
    storage: Storage,
    paths: RunPaths,
    config: ClusteringConfig,
    seeds: list[Trial],
    train: Callable[[list[Trial], int | None], None],
) -> list[Trial]:
    """`halve` for the trials of one K."""
    for iteration in rungs(config):
        missing = [trial for trial in seeds if not _reached(storage, paths, trial, iteration)]
        if missing:
            train(missing, iteration)
        seeds = _better(storage, paths, seeds, iteration)
    missing = [trial for trial in seeds if not is_done(storage, paths, trial)]
    if missing:
        train(missing, None)
    return seeds


def better_half(losses: dict[Trial, float]) -> list[Trial]:
    """The trials with the lower losses, half of them, rounded up; of equal ones the lower seeds."""
    ordered = sorted(losses, key=lambda trial: (losses[trial], trial.seed))
    return ordered[: math.ceil(len(ordered) / 2)]


def _better(storage: Storage, paths: RunPaths, seeds: list[Trial], iteration: int) -> list[Trial]:
    losses = {trial: _loss(storage, paths, trial, iteration) for trial in seeds}
    kept = better_half(losses)
    stopped = ", ".join(f"{trial.name} ({loss:.6g})" for trial, loss in losses.items() if trial not in kept)
    if stopped:
        say("cluster", f"{stopped} stops after {iteration} iterations; {kept[0].name} has {losses[kept[0]]:.6g}")
    return kept


def _reached(storage: Storage, paths: RunPaths, trial: Trial, iteration: int) -> bool:
    rung = paths.rung(trial.name, iteration)
    return read_patiently(lambda: storage.exists(rung) or is_done(storage, paths, trial), storage.uri(rung))


def _loss(storage: Storage, paths: RunPaths, trial: Trial, iteration: int) -> float:
    """At the rung; of a trial that was over before, of its last window."""
    rung = paths.rung(trial.name, iteration)

    def read() -> float:
        if storage.exists(rung):
            return float(read_json(storage, rung)["loss"])
        result = TrialResult.from_json(read_json(storage, paths.trial_marker(trial.name)))
        return loss_at(result.history, iteration)

    return read_patiently(read, storage.uri(rung))
