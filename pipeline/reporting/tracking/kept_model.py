"""The kept trial's model in MLflow: logged, registered, and no other one of the same run."""

from __future__ import annotations

from typing import Any

from pipeline.paths import RunPaths
from pipeline.reporting.run import PastRun
from pipeline.reporting.tracking.model import log_model
from pipeline.reporting.tracking.registry import register, unregister
from pipeline.reporting.tracking.server import all_of, is_server, tracking_uri
from pipeline.reporting.tracking.tags import RUN_TAG, WORKSPACE_TAG
from pipeline.storage import Storage


def track_model(
    client: Any, experiment: str, parent: str, common: dict[str, str], storage: Storage, run: PastRun
) -> str:
    """Log and register the kept trial's model in place of earlier attempts; return the address of its version.

    Args:
        client: of MLflow.
        experiment: MLflow's id of it.
        parent: MLflow's id of the run that the model belongs to.
        common: tags that tell what belongs to this run of this workspace.
        storage: workspace with the model.
        run: that is recorded.
    """
    name, selected = run.config.collection, run.selected
    checkpoint = RunPaths(name, run.run_id).checkpoint(selected.trial.name)
    model = log_model(client, experiment, parent, storage, checkpoint, run.config.clustering, run.crawls[0], common)
    # A database resolves a model's own address at the tracking URI of the process, which may be another.
    on_server = is_server(tracking_uri(storage, run.config))
    source = f"models:/{model.model_id}" if on_server else model.artifact_location
    tags = {"k": str(selected.k), "loss": str(selected.loss)}
    version = register(client, name, source, model, common, tags, run.first_reported_at)
    _delete_models(client, experiment, common, kept=model.model_id)
    return f"models:/{name}/{version}"


def untrack_model(client: Any, experiment: str, name: str, common: dict[str, str]) -> None:
    """Delete the version of a run, and its models with their files; the arguments are those of `track_model`."""
    unregister(client, name, common)
    _delete_models(client, experiment, common)


def _delete_models(client: Any, experiment: str, common: dict[str, str], kept: str | None = None) -> None:
    """Delete all models of a run but `kept`, whether they were registered or not.

    MLflow only marks them as deleted; their files, which are large, are deleted here, first.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    wanted = f"tags.`{RUN_TAG}` = '{common[RUN_TAG]}'"
    for model in all_of(lambda token: client.search_logged_models([experiment], wanted, page_token=token)):
        if model.tags.get(WORKSPACE_TAG) == common[WORKSPACE_TAG] and model.model_id != kept:
            get_artifact_repository(model.artifact_location, tracking_uri=client.tracking_uri).delete_artifacts()
            client.delete_logged_model(model.model_id)
