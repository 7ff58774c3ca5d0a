"""A clustering run of a collection, as all of reporting sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.clustering.trial import TrialResult
from pipeline.config import JobConfig
from pipeline.paths import RunPaths
from pipeline.records import Crawl


@dataclass(frozen=True)
class Run:
    """A clustering run of a collection, before or after it is reported."""

    run_id: str
    config: JobConfig
    crawls: list[Crawl]
    """Crawls whose images were clustered, in their current state; all are complete and have the same image form."""
    results: list[TrialResult]
    """Results of all trials."""
    selected: TrialResult
    """Result of the kept trial."""
    reason: str
    """Short reason why this trial is kept."""
    document: dict[str, Any] = field(default_factory=dict)
    """Content of ``run.json``; empty if the run is not reported yet."""

    @property
    def collection(self) -> str:
        """Name of the collection."""
        return self.config.collection

    @property
    def paths(self) -> RunPaths:
        """Storage keys of the run."""
        return RunPaths(self.collection, self.run_id)

    @property
    def checkpoint_key(self) -> str:
        """Key of the checkpoint of the kept trial."""
        return self.paths.checkpoint(self.selected.trial.name)

    @property
    def first_reported_at(self) -> str:
        """Time of the first report of the run, as ISO 8601 in UTC."""
        return str(self.document["created_at"])
