"""Curriculum learning: a module is switched on after convergence, or at an upper bound (DTI paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.clustering.trial import StageRecord
from pipeline.config import ScheduleConfig

FINAL_LEARNING_RATE = 0.1
"""Factor on the configured learning rate in the last stage."""


class Curriculum:
    """The stages of training: no module, one module, …, all modules, then all at a tenth of the learning rate.

    Decisions depend on the mean loss of each window, which is the same on every worker, so all workers decide alike. A
    window makes progress when its gain exceeds `tolerance` times the gain since the stage began. This criterion does
    not depend on the unit of the loss or on the additive constant of a log-likelihood.

    Args:
        schedule: lengths of the stages.
        modules: names of the transformation modules, in the order in which they are switched on.
    """

    def __init__(self, schedule: ScheduleConfig, modules: Sequence[str]) -> None:
        self.schedule = schedule
        self.modules = list(modules)
        self.stage = 0
        self.iterations = 0
        """Number of iterations done in this stage."""
        self.first_loss = float("inf")
        """Mean loss of the stage's first window."""
        self.best_loss = float("inf")
        self.stale_windows = 0
        self.history: list[StageRecord] = []

    @property
    def active_modules(self) -> int:
        """Number of modules that are switched on."""
        return min(self.stage, len(self.modules))

    @property
    def learning_rate_factor(self) -> float:
        """Factor on the configured learning rate."""
        return FINAL_LEARNING_RATE if self.stage > len(self.modules) else 1.0

    @property
    def done(self) -> bool:
        """Whether training is over."""
        return self.stage > self._last_stage

    def begin_with_all(self) -> None:
        """Skip the stages before all modules are active, which a trained model does not need."""
        self.stage = len(self.modules)

    def stages_left(self) -> list[tuple[int, int]]:
        """Return, for each remaining stage, the number of active modules and a bound on the remaining iterations."""
        if self.done:
            return []
        later = range(self.stage + 1, self._last_stage + 1)
        limits = [(self.stage, self._limit(self.stage) - self.iterations), *((s, self._limit(s)) for s in later)]
        return [(min(stage, len(self.modules)), iterations) for stage, iterations in limits]

    def iterations_left(self) -> int:
        """Return an upper bound on the number of remaining iterations."""
        return sum(iterations for _, iterations in self.stages_left())

    def next_window(self) -> int:
        """Return the number of iterations of the next window, which ends with the stage at the latest."""
        return min(self.schedule.window, self._limit(self.stage) - self.iterations)

    def update(self, iterations: int, mean_loss: float) -> bool:
        """Add a window of `iterations` with its mean loss. Return whether it ended the stage."""
        self.iterations += iterations
        if self.iterations == iterations:
            self.first_loss, progress = mean_loss, True
        else:
            gain_needed = self.schedule.tolerance * (self.first_loss - min(self.best_loss, mean_loss))
            progress = mean_loss < self.best_loss - gain_needed
        self.stale_windows = 0 if progress else self.stale_windows + 1
        self.best_loss = min(self.best_loss, mean_loss)
        at_limit = self.iterations >= self._limit(self.stage)
        converged = self.stale_windows >= self.schedule.patience and self.iterations >= self.schedule.min_iterations
        if not (at_limit or converged):
            return False
        reason = "converged" if converged else "max_iterations"
        self.history.append(StageRecord(self.modules[: self.active_modules], self.iterations, reason))
        self.stage, self.iterations, self.stale_windows, self.best_loss = self.stage + 1, 0, 0, float("inf")
        return True

    def state(self) -> dict[str, Any]:
        """Return everything that changes, as JSON-serialisable values; `restore` reads them."""
        names = ("stage", "iterations", "first_loss", "best_loss", "stale_windows")
        history = [vars(record) for record in self.history]
        return {**{name: getattr(self, name) for name in names}, "history": history}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state` that `state()` returned."""
        for name, value in state.items():
            setattr(self, name, value)
        self.history = [StageRecord(**record) for record in state["history"]]

    @property
    def _last_stage(self) -> int:
        return len(self.modules) + (1 if self.schedule.final_iterations else 0)

    def _limit(self, stage: int) -> int:
        return self.schedule.longest(stage) if stage <= len(self.modules) else self.schedule.final_iterations
