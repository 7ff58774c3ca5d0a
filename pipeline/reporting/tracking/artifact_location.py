"""Where the artifacts of a collection are stored if MLflow's database lies in the workspace.

MLflow stores absolute addresses of artifacts. After a workspace was moved, they would lead to its old place: old photos
would not be found, and new ones would be written there. MLflow has no function to change them.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from pipeline.reporting.tracking.server import database_path
from pipeline.storage import Storage

# Table, column of addresses, and condition on the rows of an experiment.
_ADDRESSES = (
    ("runs", "artifact_uri", "experiment_id = :experiment"),
    ("logged_models", "artifact_location", "experiment_id = :experiment"),
    ("model_versions", "source", "1"),
    ("model_versions", "storage_location", "1"),
)


def artifact_location(storage: Storage, collection: str) -> str:
    """Return the address of the folder for the artifacts of a collection in the workspace."""
    folder = storage.uri(f"mlartifacts/{collection}")
    # Escape the # of a hashtag, which would start the fragment of a URI.
    return folder.replace("#", "%23") if "://" in folder else Path(folder).as_uri()


def move_experiment(uri: str, experiment: str, old: str, new: str) -> None:
    """Change the address of the artifacts of an experiment, and of everything in it, from `old` to `new`.

    Args:
        uri: URI of the SQLite database.
        experiment: id of the experiment.
        old: address of its artifacts in the database.
        new: address of the folder in which they are now.
    """
    path = database_path(uri)
    assert path is not None
    values = {"experiment": experiment, "old": old.rstrip("/"), "new": new.rstrip("/")}
    with closing(sqlite3.connect(path, timeout=60)) as database, database:
        database.execute("UPDATE experiments SET artifact_location = :new WHERE experiment_id = :experiment", values)
        for table, column, condition in _ADDRESSES:
            database.execute(
                f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "
                f"WHERE {condition} AND substr({column}, 1, length(:old) + 1) = :old || '/'",
                values,
            )
