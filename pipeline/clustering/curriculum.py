"""Curriculum learning: one thing more is learned after convergence, or at an upper bound (DTI paper, section 4.2).

The paper switches on one module after the other, the first one after a stage without any. Here an aligned start makes
that stage needless, and the likelihood is learned in steps as well: variances are equal
until all modules are aligned, since a prototype that is early to lower or raise its own would explain all images that
are far from the others. Mixing proportions follow in the last stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.clustering.trial import StageRecord
from pipeline.config import ClusteringConfig

FINAL_LEARNING_RATE = 0.1
"""Factor on the configured learning rate in the last stage."""
VARIANCES = "variances"
"""Name of what the stage after all modules learns, in a mixture."""


@dataclass(frozen=True)
class Stage:
    """What is learned in a stage of the curriculum."""

    predicted: int
    """Number of predicted modules that are on; colours are fitted in every stage."""
    variances: bool = False
    """Whether the variances of pixels are learned."""
    final: bool = False
    """Whether it is the last stage, at a lower learning rate and with learned mixing proportions."""

    @property
    def level(self) -> int:
        """Number of things that are learned besides the prototypes; iterations of equal level take equally long."""
        return self.predicted + self.variances


def stages_of(config: ClusteringConfig) -> list[Stage]:
    """Return the stages: one for each number of predicted modules, variances of a mixture, and the last one.

    The first stage has the modules up to the one that the start has aligned, or else none.
    """
    everything = len(config.predicted)
    stages = [Stage(predicted) for predicted in range(config.modules_at_start, everything + 1)]
    if config.is_mixture:
        stages.append(Stage(everything, variances=True))
    if config.schedule.final_iterations:
        stages.append(Stage(everything, variances=config.is_mixture, final=True))
    return stages


class Curriculum:
    """The stages of a training.

    Decisions depend on the mean loss of each window, which is the same on every worker, so all workers decide alike. A
    window makes progress when its gain exceeds `tolerance` times the gain since the stage began. This criterion does
    not depend on the unit of the loss or on the additive constant of a log-likelihood.

    Args:
        config: modules, method, and lengths of the stages.
    """

    def __init__(self, config: ClusteringConfig) -> None:
        self.config, self.schedule = config, config.schedule
        self.stages = stages_of(config)
        self.stage = 0
        """Index of the current stage."""
        self.iterations = 0
        """Number of iterations done in this stage."""
        self.first_loss = float("inf")
        """Mean loss of the stage's first window."""
        self.best_loss = float("inf")
        self.stale_windows = 0
        self.history: list[StageRecord] = []

    @property
    def current(self) -> Stage:
        """The current stage, or the last one when training is over."""
        return self.stages[min(self.stage, len(self.stages) - 1)]

    @property
    def names(self) -> list[str]:
        """Names of the modules in use, in their configured order, and of variances if they are learned."""
        used = {"color", *self.config.predicted[: self.current.predicted]}
        return [name for name in self.config.transforms if name in used] + [VARIANCES] * self.current.variances

    def is_complete(self, stage: Stage) -> bool:
        """Whether everything but mixing proportions is learned in `stage`."""
        return stage.level == self.stages[-1].level

    @property
    def learning_rate_factor(self) -> float:
        """Factor on the configured learning rate."""
        return FINAL_LEARNING_RATE if self.current.final else 1.0

    @property
    def windows(self) -> int:
        """Number of windows done in this stage."""
        return -(-self.iterations // self.schedule.window)

    @property
    def done(self) -> bool:
        """Whether training is over."""
        return self.stage >= len(self.stages)

    def begin_with_all(self) -> None:
        """Skip the stages in which a part of the model is not learned, which a trained model does not need."""
        while not self.is_complete(self.current):
            self.stage += 1

    def stages_left(self) -> list[tuple[int, int]]:
        """Return the level of each remaining stage, and a bound on its remaining iterations."""
        if self.done:
            return []
        limits = [self._limit(stage) for stage in range(self.stage, len(self.stages))]
        limits[0] -= self.iterations
        return [(stage.level, limit) for stage, limit in zip(self.stages[self.stage :], limits, strict=True)]

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
        self.history.append(StageRecord(self.names, self.iterations, reason))
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

    def _limit(self, stage: int) -> int:
        return self.schedule.final_iterations if self.stages[stage].final else self.schedule.longest(stage)
