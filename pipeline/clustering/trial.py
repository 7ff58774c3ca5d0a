"""A trial is one training run: one K and one seed. Its result is what later steps choose from and report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.paths import RunPaths
from pipeline.storage import Storage


@dataclass(frozen=True)
class Trial:
    """What one training run is asked to do, beyond the job's configuration."""

    k: int
    seed: int

    @property
    def name(self) -> str:
        """Name of the trial's folder and of its tracked run."""
        return f"k={self.k}-seed={self.seed}"


def is_done(storage: Storage, paths: RunPaths, trial: Trial) -> bool:
    """Whether both the trial's result and its model are there."""
    return storage.exists(paths.trial_marker(trial.name)) and storage.exists(paths.checkpoint(trial.name))


@dataclass(frozen=True)
class StageRecord:
    """One stage of the curriculum as it happened."""

    modules: list[str]
    """Modules that were active."""
    iterations: int
    reason: str
    """Why it ended: ``converged`` or ``max_iterations``."""


@dataclass(frozen=True)
class HistoryPoint:
    """Averages over one window of iterations."""

    iteration: int
    """Iterations done at the end of the window."""
    loss: float
    """Mean of the reported loss per image."""
    learning_rate: float
    active_modules: int
    reassigned: int
    """Prototypes that restarted from the largest cluster."""
    largest_share: float
    smallest_share: float


@dataclass(frozen=True)
class TrialResult:
    """Content of ``trial.json``."""

    k: int
    seed: int
    loss: float
    """Mean over all images of the collection after training: negative log-likelihood in nats (GMM) or squared error."""
    iterations: int
    image_passes: int
    seconds: float
    """Training time over all attempts, without start-up."""
    workers: int
    stages: list[StageRecord]
    history: list[HistoryPoint]

    @property
    def trial(self) -> Trial:
        """Which trial this is the result of."""
        return Trial(self.k, self.seed)

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable document; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> TrialResult:
        """The result that `to_json` wrote."""
        stages = [StageRecord(**stage) for stage in document["stages"]]
        history = [HistoryPoint(**point) for point in document["history"]]
        return cls(**{**document, "stages": stages, "history": history})


def loss_at(history: Sequence[HistoryPoint], iteration: int) -> float:
    """Mean loss of the first window that ends at `iteration` or later; of the last one where none does."""
    return next((point.loss for point in history if point.iteration >= iteration), history[-1].loss)


def best_of_each_k(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Of each K the trial with the lowest loss (minLoss, DTI paper, section 5.1), ordered by K."""
    best: dict[int, TrialResult] = {}
    for result in results:
        if result.k not in best or result.loss < best[result.k].loss:
            best[result.k] = result
    return [best[k] for k in sorted(best)]
