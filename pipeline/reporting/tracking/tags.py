"""Tags of MLflow runs, models and versions: the run that they belong to, and who ran which program."""

from __future__ import annotations

import getpass
import sys

RUN_TAG, WORKSPACE_TAG = "visual_trends.run_id", "visual_trends.workspace"
"""Tags that identify the MLflow runs, models and versions of a run of a workspace; workspaces can share a server."""


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
