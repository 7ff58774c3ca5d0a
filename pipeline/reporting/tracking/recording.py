"""The context of recording a run in MLflow, which is passed to all functions that take part in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.reporting.run import Run
from pipeline.storage import Storage


@dataclass(frozen=True)
class Recording:
    """A run that is being recorded in MLflow."""

    client: Any
    """MLflow client."""
    experiment: str
    """Id of the experiment in MLflow."""
    parent: str
    """Id of the parent run in MLflow."""
    owner: dict[str, str]
    """Tags that identify the records of this run of this workspace."""
    storage: Storage
    """Workspace of the run."""
    run: Run
    """Run to record."""
