"""A real MLflow server on loopback, with artifacts in a local folder or in S3."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests


def closed_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, artifacts: str, variables: Mapping[str, str]) -> Iterator[str]:
    """Context with a server, given by its address.

    Args:
        folder: folder for the database and the log of the server.
        artifacts: folder or ``s3://bucket/prefix`` for artifacts.
        variables: environment variables of the server, such as its credentials for S3; clients do not have them.
    """
    port = closed_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    options += ["--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", artifacts]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "server", *options]
    uri = f"http://127.0.0.1:{port}"
    with (folder / "log").open("w") as log:
        environment = {**os.environ, **quiet, **variables}
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        try:
            _await(uri, folder / "log")
            yield uri
        finally:
            process.terminate()
            process.wait(30)


def _await(uri: str, log: Path) -> None:
    for _ in range(240):
        try:
            if requests.get(f"{uri}/health", timeout=1).ok:
                return
        except requests.RequestException:
            time.sleep(0.5)
    raise TimeoutError(log.read_text())
