"""MLflow's model registry: each collection is a registered model, and each of its runs is a version.

The alias `CURRENT` points to the version whose run has the latest first report. Reporting or recording
an earlier run again replaces its version and does not make it current. Workspaces that share a server and have a
collection of the same name share its registered model, but each of them replaces only its own versions.
"""

from __future__ import annotations

from typing import Any

from pipeline.reporting.tracking.recording import Recording
from pipeline.reporting.tracking.server import all_pages

CURRENT = "current"
"""Alias of the version to use, as in ``models:/NAME@current``."""
FIRST_REPORTED_TAG = "visual_trends.first_reported_at"
"""Tag of a version: time of the first report of its run, as ISO 8601 in UTC."""


def register(recording: Recording, source: str, model: Any) -> str:
    """Register `model` as the version of its run, replacing earlier versions; return the version number.

    The registered model is named after the collection and created if it does not exist.

    Args:
        recording: recording of the run.
        source: URI of the model.
        model: MLflow's ``LoggedModel``.
    """
    client, run, name = recording.client, recording.run, recording.run.collection
    _create_registered_model(client, name)
    versions = _versions(client, name)
    earlier = [version for version in versions if _is_of(version, recording.owner)]
    # An interrupted report can lose the time of the first report, so the tags of earlier versions count as well.
    earlier_times = [version.tags[FIRST_REPORTED_TAG] for version in earlier if FIRST_REPORTED_TAG in version.tags]
    tags = {
        **recording.owner,
        "k": str(run.selected.k),
        "loss": str(run.selected.loss),
        FIRST_REPORTED_TAG: min([run.first_reported_at, *earlier_times]),
    }
    created = client.create_model_version(name, source, model.source_run_id, tags=tags, model_id=model.model_id)
    _point_to_newest(client, name, [*(version for version in versions if version not in earlier), created])
    for version in earlier:
        client.delete_model_version(name, version.version)
    return str(created.version)


def unregister(client: Any, name: str, owner: dict[str, str]) -> None:
    """Delete the version of the run with the tags `owner` in the registered model `name`."""
    versions = _versions(client, name)
    _point_to_newest(client, name, [version for version in versions if not _is_of(version, owner)])
    for version in versions:
        if _is_of(version, owner):
            client.delete_model_version(name, version.version)


def _is_of(version: Any, owner: dict[str, str]) -> bool:
    return owner.items() <= version.tags.items()


def _point_to_newest(client: Any, name: str, versions: list[Any]) -> None:
    """Point `CURRENT` to the version whose run has the latest first report; do nothing if no version has this time."""
    reported = [version for version in versions if FIRST_REPORTED_TAG in version.tags]
    if reported:
        newest = max(reported, key=lambda version: (version.tags[FIRST_REPORTED_TAG], int(version.version)))
        client.set_registered_model_alias(name, CURRENT, newest.version)


def _create_registered_model(client: Any, name: str) -> None:
    """Create the registered model `name` if it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _versions(client: Any, name: str) -> list[Any]:
    return all_pages(lambda token: client.search_model_versions(f"name = '{name}'", page_token=token))
