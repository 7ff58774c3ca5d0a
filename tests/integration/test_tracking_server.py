"""Tests of what a run records on a real MLflow server, with artifacts in a folder and in S3."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.reporting.tracking.runs import Tracking
from pipeline.storage import LocalStorage, read_json
from tests.integration.test_tracking import current, predicted, runs, track_report, versions
from tests.support.made_report import make_report
from tests.support.mlflow_server import closed_port, mlflow_server
from tests.support.s3_server import CREDENTIALS, s3_endpoint, s3_server  # noqa: F401 (fixtures)

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def s3_of(endpoint: str) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )


@pytest.fixture(scope="module")
def folder_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder, str(folder / "artifacts"), {}) as uri:
        yield uri


@pytest.fixture(scope="module")
def s3_backed_server(tmp_path_factory: pytest.TempPathFactory, s3_endpoint: str) -> Iterator[str]:  # noqa: F811
    """A server with artifacts in a bucket to which only the server has access."""
    s3_of(s3_endpoint).create_bucket(Bucket="mlflow")
    variables = {**CREDENTIALS, "MLFLOW_S3_ENDPOINT_URL": s3_endpoint}
    with mlflow_server(tmp_path_factory.mktemp("server"), "s3://mlflow/artifacts", variables) as uri:
        yield uri


@pytest.fixture(params=["folder_server", "s3_backed_server"])
def server(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def test_runs_artifacts_and_model_are_recorded_over_http(server: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    track_report(tmp_path, server)
    tracking = track_report(tmp_path, server)  # a restart
    assert tracking == Tracking(server, tracking.run_id, None, "models:/#paris/2")
    found = runs(server)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    parent = found["run-1"]
    assert parent.info.run_id == tracking.run_id
    assert parent.data.tags["mlflow.source.git.commit"] == "c0ffee"
    (used,) = parent.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("#paris", parent.data.tags["data_digest"])
    page = Path(download_artifacts(run_id=tracking.run_id, artifact_path="report.html", tracking_uri=server))
    assert page.read_bytes() == b"content of #paris/runs/run-1/report.html"
    client = MlflowClient(tracking_uri=server)
    listed = {item.path for item in client.list_artifacts(tracking.run_id)}
    assert {"mosaic.png", "clusters", "clusters.parquet", "run.json"} <= listed
    assert not (tmp_path / "mlartifacts").exists()
    (version,) = versions(server).values()
    assert (version.run_id, current(server)) == (tracking.run_id, "run-1")
    (logged,) = client.search_logged_models([parent.info.experiment_id])
    for address in ("models:/#paris@current", tracking.model, f"runs:/{tracking.run_id}/model", logged.model_uri):
        assert predicted(server, str(address))["cluster"].tolist() == [3, 2, 0, 1]


def test_artifacts_and_model_are_in_the_server_s_bucket(
    s3_backed_server: str,
    s3_endpoint: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    tracking = track_report(tmp_path, s3_backed_server, "run-2")
    found = s3_of(s3_endpoint).list_objects_v2(Bucket="mlflow", Prefix="artifacts/")["Contents"]
    keys = {item["Key"] for item in found}
    assert any(key.endswith(f"{tracking.run_id}/artifacts/report.html") for key in keys)
    assert any(key.endswith("/artifacts/data/checkpoint.pt") for key in keys)


def sync(workspace: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/cluster_collection.py", "--collection", "#paris", "--workspace", str(workspace)]
    return subprocess.run(
        [*command, "--sync-tracking", *options], capture_output=True, text=True, cwd=ROOT, env=os.environ, check=False
    )


def test_a_command_records_the_runs_that_a_server_missed(folder_server: str, tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path / "missed"))
    down = f"http://127.0.0.1:{closed_port()}"
    for run_id, created_at in (("run-1", "2027-01"), ("run-2", "2027-02")):
        make_report(storage, "#paris", run_id, created_at, tracked=down)
    failed = sync(tmp_path / "missed")
    assert failed.returncode == 1
    assert failed.stderr == f"error: run-1 cannot be recorded in {down}; run the same command again\n"
    done = sync(tmp_path / "missed", "--tracking-uri", folder_server)
    assert (done.returncode, done.stderr) == (0, "")
    console = [line for line in done.stdout.splitlines() if line.startswith("sync")]
    assert console == [f"sync      {run_id} is recorded in {folder_server}" for run_id in ("run-1", "run-2")]
    assert {"missed/run-1", "missed/run-2"} <= set(versions(folder_server))
    assert current(folder_server) == "run-2"
    assert read_json(storage, "#paris/runs/run-1/run.json")["tracking"]["uri"] == folder_server
    # Without --tracking-uri, the latest location of each run is checked.
    again = sync(tmp_path / "missed")
    assert again.stdout.splitlines() == [f"sync      run-{n} is already in {folder_server}" for n in (1, 2)]
