"""The MLflow server or database of a job: its URI, and access to it."""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from filelock import FileLock

from pipeline.config import JobConfig
from pipeline.console import say
from pipeline.masking import mask
from pipeline.storage import Storage

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a model's requirements are given, not those of the current folder
    "GIT_PYTHON_REFRESH": "quiet",
}


UNQUOTED = "".join(sorted(set(string.punctuation) - set("%?")))
"""Punctuation that stands for itself in the path of a database URI; ``?`` would begin its query."""


def tracking_uri(storage: Storage, config: JobConfig) -> str:
    """Return the URI of the tracking server or database of `config`. Default: `default_uri`."""
    return config.tracking_uri or default_uri(storage)


def default_uri(storage: Storage) -> str:
    """Return the URI of the SQLite database in the workspace."""
    return f"sqlite:///{quote(storage.uri('mlflow.db'), safe=UNQUOTED)}"


def database_path(uri: str) -> Path | None:
    """Return the path of the SQLite database at `uri`; None for another kind of URI."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def is_server(uri: str) -> bool:
    """Whether `uri` belongs to a server, which determines where artifacts are stored, rather than to a database."""
    return uri.startswith(("http://", "https://"))


def client_of(uri: str) -> Any:
    """Return an MLflow client without telemetry and console output, and with a short timeout."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def all_pages(search: Callable[[str | None], Any]) -> list[Any]:
    """Return the results of all pages of an MLflow search; `search` takes the token of a page."""
    results: list[Any] = []
    token = None
    while True:
        page = search(token)
        results += page
        if not (token := page.token):
            return results


def database_lock(uri: str) -> Any:
    """Return a lock for a SQLite database, whose tables must not be created by two jobs at once; no lock for others."""
    path = database_path(uri)
    if path is None:
        return nullcontext()
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))


def remove_quoted_folder(uri: str) -> None:
    """Remove the empty folder that MLflow creates beside that of a database, under its name as the URI quotes it."""
    path, quoted = database_path(uri), Path(uri.removeprefix("sqlite:///").partition("?")[0]).parent
    if path is not None and quoted != path.parent:
        with suppress(OSError):
            quoted.rmdir()


@contextmanager
def failures_as_warning(uri: str) -> Iterator[list[str]]:
    """Collect failures in a list, and print them as one warning at the end; an exception is added to the list."""
    failures: list[str] = []
    try:
        yield failures
    except Exception as error:  # MLflow's stores raise various types of exceptions
        failures.append(error_line(error))
    remove_quoted_folder(uri)
    if failures:
        say(
            "track",
            f"warning: not everything is recorded in {mask(uri)}; run the same command again or with "
            f"--sync-tracking: {'; '.join(failures)}",
        )


def error_line(error: Exception) -> str:
    """Return the message of `error` on one line, without credentials."""
    return " ".join(mask(str(error)).split())[:200] or type(error).__name__
