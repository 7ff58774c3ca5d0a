"""The workers that train the trials of a job, if there is anything to train."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.config import JobConfig

if TYPE_CHECKING:
    from pipeline.clustering.trainer import TrainingPool
    from pipeline.clustering.trial_queue import Work


class LazyPool:
    """A TrainingPool that starts with the first trials that are missing; a context manager.

    Args:
        jobs: all whose trials may come; what a group of workers is, the first of them says.
    """

    def __init__(self, jobs: Sequence[JobConfig]) -> None:
        self._lock = threading.Lock()
        self._pool: TrainingPool | None = None
        self._config = jobs[0].clustering
        self._trials = sum(len(job.clustering.k) * job.clustering.seeds for job in jobs)

    def __enter__(self) -> LazyPool:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.__exit__(*error)

    def train(self, works: list[Work]) -> None:
        """As `TrainingPool.train`."""
        # It imports torch, which a job without anything to train does not need.
        from pipeline.clustering.trainer import TrainingPool

        with self._lock:
            if self._pool is None:
                self._pool = TrainingPool(self._config, self._trials)
        self._pool.train(works)
