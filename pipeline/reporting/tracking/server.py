"""The MLflow server or database of a job: where it is, and how it is reached."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.config import JobConfig
from pipeline.console import say
from pipeline.storage import Storage

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a model's requirements are ours, not those of the folder we are started in
    "GIT_PYTHON_REFRESH": "quiet",
}


def tracking_uri(storage: Storage, config: JobConfig) -> str:
    """The tracking server or database of `config`: SQLite in the workspace unless it names another."""
    return config.tracking_uri or default_uri(storage)


def default_uri(storage: Storage) -> str:
    """SQLite in the workspace."""
    return f"sqlite:///{storage.uri('mlflow.db')}"


def without_credentials(text: str) -> str:
    """`text` without the user and password of any address in it."""
    return re.sub(r"(?<=://)[^/\s]+@", "", text)


def is_server(uri: str) -> bool:
    """Whether `uri` is the address of a server, which knows where artifacts lie; otherwise it is a database."""
    return uri.startswith(("http://", "https://"))


def client_of(uri: str) -> Any:
    """An MLflow client that neither calls home nor talks on the console, and soon gives up on a dead server."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def all_of(search: Callable[[str | None], Any]) -> list[Any]:
    """Everything that MLflow finds, page after page; `search` takes the token of a page."""
    found: list[Any] = []
    token = None
    while True:
        page = search(token)
        found += page
        if not (token := page.token):
            return found


def first_use(uri: str) -> Any:
    """A lock for SQLite, whose tables must not be made by two jobs at the same moment; nothing for a server."""
    database = uri.removeprefix("sqlite:///")
    if database == uri:
        return nullcontext()
    path = Path(database).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))


@contextmanager
def guarded(uri: str) -> Iterator[list[str]]:
    """Turn an exception into a line of the list, and the lines of the list into one warning."""
    faults: list[str] = []
    try:
        yield faults
    except Exception as error:  # stores raise whatever their clients raise
        faults.append(line(error))
    if faults:
        where, why = without_credentials(uri), "; ".join(faults)
        say("track", f"warning: not all is recorded in {where}, the same command or --sync-tracking tries again: {why}")


def line(error: Exception) -> str:
    """What `error` says, on one line, without credentials."""
    return " ".join(without_credentials(str(error)).split())[:200] or type(error).__name__
