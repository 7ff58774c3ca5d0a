"""The context of recording a run in MLflow, which is passed to all functions that take part in it."""

from __future__ import annotations

import getpass
import sys
from dataclasses import dataclass
from typing import Any

from pipeline.reporting.run import Run
from pipeline.storage import Storage

RUN_TAG, WORKSPACE_TAG = "visual_trends.run_id", "visual_trends.workspace"
"""Tags that identify the MLflow runs, models and versions of a run of a workspace; workspaces can share a server."""


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


def source_tags(commit: str | None) -> dict[str, str]:
    """Return MLflow's standard tags for user, program and commit.

    Args:
        commit: Git commit of the code that made the report, which may be recorded later; None if it is unknown.
    """
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):  # the user of a container may have no name
        user = "unknown"
    tags = {"mlflow.user": user, "mlflow.source.name": sys.argv[0], "mlflow.source.type": "LOCAL"}
    return {**tags, "mlflow.source.git.commit": commit} if commit else tags
