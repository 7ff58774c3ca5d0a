"""MLflow's model registry: a collection is a registered model, each of its runs a version.

The alias `CURRENT` is the run that was first reported last. Reporting an earlier run again, or recording it on another
day, replaces its version and does not make it current. Workspaces that share a server and have a collection of one name
share its registered model; each replaces its own versions alone.
"""

from __future__ import annotations

from typing import Any

from pipeline.reporting.tracking.server import all_of

CURRENT = "current"
"""Alias of the version to use, as in ``models:/NAME@current``."""
FIRST_REPORTED_TAG = "visual_trends.first_reported_at"
"""Of a version: when its run was reported for the first time, as ISO 8601 in UTC."""


def register(
    client: Any, name: str, source: str, model: Any, owner: dict[str, str], tags: dict[str, str], first_reported_at: str
) -> str:
    """Make `model` the version of its run, in place of earlier ones; return its number.

    Args:
        client: of MLflow.
        name: of the registered model, which is made where it does not exist.
        source: address of the model.
        model: as it was logged.
        owner: tags that tell the versions of this run of this workspace from others.
        tags: further tags.
        first_reported_at: when the run was reported for the first time, as far as the workspace knows.
    """
    _make(client, name)
    versions = _versions(client, name)
    earlier = [version for version in versions if _is_of(version, owner)]
    # An interrupted report may have cost the workspace its memory.
    known = [version.tags[FIRST_REPORTED_TAG] for version in earlier if FIRST_REPORTED_TAG in version.tags]
    tags = {**owner, **tags, FIRST_REPORTED_TAG: min([first_reported_at, *known])}
    made = client.create_model_version(name, source, model.source_run_id, tags=tags, model_id=model.model_id)
    _point_to_newest(client, name, [*(version for version in versions if version not in earlier), made])
    for version in earlier:
        client.delete_model_version(name, version.version)
    return str(made.version)


def unregister(client: Any, name: str, owner: dict[str, str]) -> None:
    """Delete the version of a run; the arguments are those of `register`."""
    versions = _versions(client, name)
    _point_to_newest(client, name, [version for version in versions if not _is_of(version, owner)])
    for version in versions:
        if _is_of(version, owner):
            client.delete_model_version(name, version.version)


def _is_of(version: Any, owner: dict[str, str]) -> bool:
    return owner.items() <= version.tags.items()


def _point_to_newest(client: Any, name: str, versions: list[Any]) -> None:
    """Make the one of `versions` current whose run was first reported last, if any of them is of a run."""
    reported = [version for version in versions if FIRST_REPORTED_TAG in version.tags]
    if reported:
        newest = max(reported, key=lambda version: (version.tags[FIRST_REPORTED_TAG], int(version.version)))
        client.set_registered_model_alias(name, CURRENT, newest.version)


def _make(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _versions(client: Any, name: str) -> list[Any]:
    return all_of(lambda token: client.search_model_versions(f"name = '{name}'", page_token=token))
