"""Tags of what is recorded: whose it is, and where it came from."""

from __future__ import annotations

import getpass
import sys

RUN_TAG, WORKSPACE_TAG = "visual_trends.run_id", "visual_trends.workspace"
"""Tags that tell which tracked runs, models and versions belong to a run of a workspace; servers are shared."""


def source_tags(commit: str | None) -> dict[str, str]:
    """MLflow's own tags, by which it shows who ran which program.

    Args:
        commit: of the code that made the report, which may be recorded another day; None where that is unknown.
    """
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user may have no name
        user = "unknown"
    tags = {"mlflow.user": user, "mlflow.source.name": sys.argv[0], "mlflow.source.type": "LOCAL"}
    return {**tags, "mlflow.source.git.commit": commit} if commit else tags
