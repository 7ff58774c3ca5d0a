"""Successive halving: seeds that fall behind are not trained to the end (Jamieson and Talwalkar, 2016).

Seeds of one K are compared by the mean loss of their window after the same number of iterations, and the better half
is trained further. Losses of different K are never compared: a larger K nearly always has the lower one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import replace

from pipeline.clustering.curriculum import Curriculum
from pipeline.clustering.storage_retries import read_with_retries
from pipeline.clustering.trial import Train, Trial, TrialResult, TrialTask, loss_at
from pipeline.config import ClusteringConfig
from pipeline.console import say
from pipeline.storage import read_json


def rungs(config: ClusteringConfig) -> list[int]:
    """Return the iterations at which half of the seeds stop; the last one is half of the longest possible training."""
    curriculum = Curriculum(config)
    if config.warm_start is not None:
        curriculum.begin_with_all()
    longest = curriculum.iterations_left()
    n = math.ceil(math.log2(config.seeds))
    iterations = [longest // 2 ** (n - index) for index in range(n)]
    return [iteration for iteration in iterations if iteration >= config.schedule.window]


def halve(tasks: Sequence[TrialTask], train: Train) -> list[Trial]:
    """Train all trials of each K for a while, and the best ones to the end; return the latter, at least one per K.

    Every decision follows from the losses in storage, so a job that is submitted again makes the same decisions. The
    values of K do not wait for each other. When all are done, the error of the smallest K that failed is raised.

    Args:
        tasks: all trials of a run, to be trained to the end.
        train: trains tasks; it is called from several threads at once.
    """
    by_k = [[task for task in tasks if task.trial.k == k] for k in sorted({task.trial.k for task in tasks})]
    threads = ThreadPoolExecutor(len(by_k), "halving")
    try:
        # Each thread gets a copy of this context, which holds the subject of lines on the console.
        futures = [threads.submit(copy_context().run, _halve_seeds, seeds, train) for seeds in by_k]
        wait(futures)
    finally:
        threads.shutdown(wait=False)  # the threads of an interrupted job end with its workers
    return [task.trial for future in futures for task in future.result()]


def _halve_seeds(seeds: list[TrialTask], train: Train) -> list[TrialTask]:
    """`halve` for the trials of one K."""
    for iteration in rungs(seeds[0].config):
        if missing := [replace(task, until=iteration) for task in seeds if not _reached(task, iteration)]:
            train(missing)
        seeds = _keep_better_half(seeds, iteration)
    if missing := [task for task in seeds if not task.is_done()]:
        train(missing)
    return seeds


def better_half(losses: dict[Trial, float]) -> list[Trial]:
    """Return the half of the trials with the lower losses, rounded up; of equal losses the one with the lower seed."""
    ordered = sorted(losses, key=lambda trial: (losses[trial], trial.seed))
    return ordered[: math.ceil(len(ordered) / 2)]


def _keep_better_half(seeds: list[TrialTask], iteration: int) -> list[TrialTask]:
    losses = {task.trial: _loss(task, iteration) for task in seeds}
    kept = better_half(losses)
    stopped = ", ".join(f"{trial.name} ({loss:.6g})" for trial, loss in losses.items() if trial not in kept)
    if stopped:
        best = f"{kept[0].name} ({losses[kept[0]]:.6g})"
        say("cluster", f"stopped after {iteration} iterations: {stopped}; the best of this K is {best}")
    return [task for trial in kept for task in seeds if task.trial == trial]


def _reached(task: TrialTask, iteration: int) -> bool:
    """Whether the loss of the trial at `iteration` is in storage."""
    rung = task.paths.rung(task.trial.name, iteration)
    return read_with_retries(lambda: task.storage.exists(rung) or task.is_done(), task.storage.uri(rung))


def _loss(task: TrialTask, iteration: int) -> float:
    """Return the loss at `iteration`; for a trial that ended earlier, the loss of its last window."""
    rung = task.paths.rung(task.trial.name, iteration)

    def read() -> float:
        if task.storage.exists(rung):
            return float(read_json(task.storage, rung)["loss"])
        result = TrialResult.from_json(read_json(task.storage, task.marker_key))
        return loss_at(result.history, iteration)

    return read_with_retries(read, task.storage.uri(rung))
