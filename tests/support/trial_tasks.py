"""Tasks of trials that are trained in the process of a test, without crawls, shards and Ray."""

from __future__ import annotations

from pipeline.clustering.trial import Trial, TrialTask
from pipeline.config import ClusteringConfig
from pipeline.paths import RunPaths
from pipeline.storage import Storage


def trial_task(
    storage: Storage,
    config: ClusteringConfig,
    trial: Trial,
    run_id: str = "run",
    earlier_key: str | None = None,
    until: int | None = None,
) -> TrialTask:
    """Return a task for `trial` in the run `run_id` of the collection ``c``; the test provides the images."""
    return TrialTask(storage, RunPaths("c", run_id), config, trial, [], 0, earlier_key, until)
