"""The model of the kept trial in MLflow: log and register it, and delete earlier models of the same run."""

from __future__ import annotations

from typing import Any

from pipeline.reporting.tracking.model import log_model
from pipeline.reporting.tracking.recording import RUN_TAG, WORKSPACE_TAG, Recording
from pipeline.reporting.tracking.registry import register, unregister
from pipeline.reporting.tracking.server import all_pages, is_server, tracking_uri


def track_model(recording: Recording) -> str:
    """Log and register the model of the kept trial, replacing earlier ones; return the URI of its version."""
    client, run = recording.client, recording.run
    model = log_model(recording)
    # With a database, a ``models:/`` URI would be resolved with the process's tracking URI, which may be another one.
    on_server = is_server(tracking_uri(recording.storage, run.config))
    source = f"models:/{model.model_id}" if on_server else model.artifact_location
    version = register(recording, source, model)
    _delete_models(client, recording.experiment, recording.owner, kept=model.model_id)
    return f"models:/{run.collection}/{version}"


def untrack_model(client: Any, experiment: str, name: str, owner: dict[str, str]) -> None:
    """Delete the version of a run in the registered model `name`, and all logged models of the run with their files.

    For `client`, `experiment` and `owner`, see `Recording`.
    """
    unregister(client, name, owner)
    _delete_models(client, experiment, owner)


def _delete_models(client: Any, experiment: str, owner: dict[str, str], kept: str | None = None) -> None:
    """Delete all logged models of a run except `kept`, whether they are registered or not.

    MLflow only marks models as deleted, so their files, which are large, are deleted first.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    query = f"tags.`{RUN_TAG}` = '{owner[RUN_TAG]}'"
    for model in all_pages(lambda token: client.search_logged_models([experiment], query, page_token=token)):
        if model.tags.get(WORKSPACE_TAG) == owner[WORKSPACE_TAG] and model.model_id != kept:
            get_artifact_repository(model.artifact_location, tracking_uri=client.tracking_uri).delete_artifacts()
            client.delete_logged_model(model.model_id)
