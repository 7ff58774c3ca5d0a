"""Trials: a trial is the training of one model, with one K and one seed. Later steps compare and report its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config import ClusteringConfig
from pipeline.paths import RunPaths
from pipeline.storage import Storage


@dataclass(frozen=True)
class Trial:
    """K and seed of one training, in addition to the configuration of the job."""

    k: int
    """Number of prototypes."""
    seed: int
    """Seed of all random numbers of the trial."""

    @property
    def name(self) -> str:
        """Name of the trial's folder and of its run in MLflow."""
        return f"k={self.k}-seed={self.seed}"


@dataclass(frozen=True)
class TrialTask:
    """A trial of a run, with everything that a worker needs to train it."""

    storage: Storage
    paths: RunPaths
    config: ClusteringConfig
    trial: Trial
    shard_keys: list[str]
    decoded_bytes: int
    """Size of all decoded images of these shards, in bytes."""
    earlier_key: str | None = None
    """Key of the trained model to start from, if any."""
    until: int | None = None
    """Iteration at which to pause and store the loss; None to train to the end."""

    @property
    def name(self) -> str:
        """Name of the trial, unique within a job that trains several collections."""
        return f"{self.paths.collection}/{self.paths.run_id}/{self.trial.name}"

    @property
    def title(self) -> str:
        """Name of the trial on the console."""
        return f"{self.paths.collection} {self.trial.name}"

    @property
    def checkpoint_key(self) -> str:
        """Key of the trial's checkpoint; a checkpoint that exists is continued."""
        return self.paths.checkpoint(self.trial.name)

    @property
    def best_key(self) -> str:
        """Key of the model with the lowest window loss among the checkpoints with all modules."""
        return self.paths.best(self.trial.name)

    @property
    def marker_key(self) -> str:
        """Key of the trial's result, ``trial.json``."""
        return self.paths.trial_marker(self.trial.name)

    def is_done(self) -> bool:
        """Whether both the trial's result and its model are in storage."""
        return self.storage.exists(self.marker_key) and self.storage.exists(self.checkpoint_key)


Train = Callable[[Sequence[TrialTask]], None]
"""Trains tasks, and returns when the result of each is in storage; several threads may call it at once."""


@dataclass(frozen=True)
class TrialProgress:
    """Progress of a trial."""

    trial: Trial
    iteration: int
    """Number of iterations done so far."""
    loss: float
    """Mean loss of the current window."""
    level: int
    """Level of the stage of this window; see `Stage.level`."""
    modules: list[str]
    """Names of the active modules, and of variances where they are learned."""
    seconds: float
    """Training time so far, over all attempts."""
    stages_left: list[tuple[int, int]]
    """For each remaining stage, its level and a bound on the remaining iterations."""


@dataclass(frozen=True)
class StageRecord:
    """A completed stage of the curriculum."""

    modules: list[str]
    """Names of the active modules, and of variances where they were learned."""
    iterations: int
    """Length of the stage."""
    reason: str
    """Reason why it ended: ``converged`` or ``max_iterations``."""


@dataclass(frozen=True)
class HistoryPoint:
    """Averages over one window of iterations."""

    iteration: int
    """Number of iterations done at the end of the window."""
    loss: float
    """Mean of the reported loss per image."""
    learning_rate: float
    active_modules: int
    """Number of active modules."""
    reassigned: int
    """Number of prototypes that restarted as one half of another cluster."""
    largest_share: float
    """Fraction of the images in the largest cluster."""
    smallest_share: float
    """Fraction of the images in the smallest cluster."""


@dataclass(frozen=True)
class ClusterRecord:
    """A cluster of the trained model, over all images."""

    images: int
    """Number of its images."""
    rival: int | None
    """The cluster that most often is the runner-up of its images; None without images or for the only cluster."""
    rival_share: float
    """Fraction of its images whose runner-up is `rival`; 0 without one."""


@dataclass(frozen=True)
class TrialResult:
    """Content of ``trial.json``."""

    k: int
    seed: int
    loss: float
    """Mean loss of all images after training: negative log-likelihood in nats (GMM) or squared error (K-means)."""
    iterations: int
    image_passes: int
    """Number of images seen in training: iterations times the batch size."""
    seconds: float
    """Training time over all attempts, without start-up."""
    workers: int
    """Number of workers of the last attempt."""
    stages: list[StageRecord]
    history: list[HistoryPoint]
    clusters: list[ClusterRecord]

    @property
    def trial(self) -> Trial:
        """The trial of this result."""
        return Trial(self.k, self.seed)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-serialisable document, which `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> TrialResult:
        """Return the result from a document of `to_json`."""
        stages = [StageRecord(**stage) for stage in document["stages"]]
        history = [HistoryPoint(**point) for point in document["history"]]
        clusters = [ClusterRecord(**cluster) for cluster in document["clusters"]]
        return cls(**{**document, "stages": stages, "history": history, "clusters": clusters})


def loss_at(history: Sequence[HistoryPoint], iteration: int) -> float:
    """Return the mean loss of the first window that ends at `iteration` or later, or else of the last window."""
    return next((point.loss for point in history if point.iteration >= iteration), history[-1].loss)


def best_of_each_k(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Return for each K the trial with the lowest loss (minLoss, DTI paper, section 5.1), ordered by K."""
    best: dict[int, TrialResult] = {}
    for result in results:
        if result.k not in best or result.loss < best[result.k].loss:
            best[result.k] = result
    return [best[k] for k in sorted(best)]
