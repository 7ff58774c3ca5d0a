"""When the next module is switched on: after convergence, or at an upper bound (DTI paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.clustering.trial import StageRecord
from pipeline.config import ScheduleConfig

FINAL_LEARNING_RATE = 0.1
"""Factor on the learning rate in the last stage."""


class Curriculum:
    """Stages: no module, one module, …, all modules, then all of them at a tenth of the learning rate.

    It sees the mean loss of each window, which is the same on every worker, so all workers decide alike. A window's
    gain counts as progress when it exceeds `tolerance` times the gain since the stage began: a measure without units,
    which the additive constant of a log-likelihood cannot disturb.
    """

    def __init__(self, schedule: ScheduleConfig, modules: Sequence[str]) -> None:
        self.schedule = schedule
        self.modules = list(modules)
        self.stage = 0
        self.iterations = 0
        """Iterations done in this stage."""
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
        """Leave out the stages before all modules are active: a model that is trained already needs none."""
        self.stage = len(self.modules)

    def iterations_left(self) -> int:
        """Upper bound on the iterations that remain."""
        if self.done:
            return 0
        later = sum(self._limit(stage) for stage in range(self.stage + 1, self._last_stage + 1))
        return self._limit(self.stage) - self.iterations + later

    def next_window(self) -> int:
        """Iterations of the next window; never beyond the end of the stage."""
        return min(self.schedule.window, self._limit(self.stage) - self.iterations)

    def update(self, iterations: int, mean_loss: float) -> bool:
        """Count a window of `iterations` with its mean loss. True when it ended the stage."""
        self.iterations += iterations
        if self.iterations == iterations:
            self.first_loss, progress = mean_loss, True
        else:
            gain_needed = self.schedule.tolerance * (self.first_loss - min(self.best_loss, mean_loss))
            progress = mean_loss < self.best_loss - gain_needed
        self.stale_windows = 0 if progress else self.stale_windows + 1
        self.best_loss = min(self.best_loss, mean_loss)
        full = self.iterations >= self._limit(self.stage)
        converged = self.stale_windows >= self.schedule.patience and self.iterations >= self.schedule.min_iterations
        if not (full or converged):
            return False
        reason = "converged" if converged else "max_iterations"
        self.history.append(StageRecord(self.modules[: self.active_modules], self.iterations, reason))
        self.stage, self.iterations, self.stale_windows, self.best_loss = self.stage + 1, 0, 0, float("inf")
        return True

    def state(self) -> dict[str, Any]:
        """Everything that changes, JSON-serialisable; `restore` takes it back."""
        names = ("stage", "iterations", "first_loss", "best_loss", "stale_windows")
        history = [vars(record) for record in self.history]
        return {**{name: getattr(self, name) for name in names}, "history": history}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name, value in state.items():
            setattr(self, name, value)
        self.history = [StageRecord(**record) for record in state["history"]]

    @property
    def _last_stage(self) -> int:
        return len(self.modules) + (1 if self.schedule.final_iterations else 0)

    def _limit(self, stage: int) -> int:
        return self.schedule.longest(stage) if stage <= len(self.modules) else self.schedule.final_iterations
