"""What MLflow holds after a job, with real databases and a real server."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from pipeline.clustering.trial import TrialResult
from pipeline.config import JobConfig
from pipeline.layout import RunPaths
from pipeline.records import Crawl
from pipeline.reporting.tracking import Tracking, finish, track, tracking_uri, untrack, without_credentials
from pipeline.storage import LocalStorage
from tests.made_collection import trial_result

RESULTS = [trial_result(2), trial_result(4, windows=300)]
CRAWL = Crawl("#paris", "2024-05", 1, 7, 6, {"truncated": 1}, 16, "d", statistics={"bytes": 5e6, "seconds": 2.5})


def config(workspace: Path, uri: str | None = None) -> JobConfig:
    return JobConfig.model_validate(
        {"collection": "#paris", "workspace": str(workspace), "stages": ["report"], "tracking_uri": uri}
    )


def record(
    workspace: Path, uri: str | None = None, run_id: str = "run-1", results: list[TrialResult] = RESULTS
) -> Tracking:
    """Track a job whose artifacts are a few bytes each."""
    storage, job, paths = LocalStorage(str(workspace)), config(workspace, uri), RunPaths("#paris", run_id)
    keys = [paths.mosaic, paths.strip(0), paths.clusters]
    for key in [*keys, paths.marker]:
        storage.write_bytes(key, b"content of " + key.encode())
    metrics = [{"accuracy": 1 / result.k, "nmi": 0.5, "classes": 3} for result in results]
    tracking = track(storage, job, run_id, [CRAWL], results, metrics, results[-1], keys)
    return finish(storage, job, tracking, paths.marker)


def all_runs(uri: str) -> list[Any]:
    """All runs of the experiment that are not deleted."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return list(client.search_runs([client.get_experiment_by_name("#paris").experiment_id]))


def runs(uri: str) -> dict[str, Any]:
    """The same, by name."""
    found = all_runs(uri)
    named = {run.info.run_name: run for run in found}
    assert len(named) == len(found), "two runs of one name"
    return named


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tracking]:
    """A job recorded in the database of its workspace."""
    workspace = tmp_path_factory.mktemp("work space")
    tracking = record(workspace)
    return tracking_uri(LocalStorage(str(workspace)), config(workspace)), tracking


def test_a_job_is_a_finished_parent_with_a_finished_run_per_trial(recorded: tuple[str, Tracking]) -> None:
    uri, tracking = recorded
    found = runs(uri)
    assert set(found) == {"run-1", "k=2-seed=0", "k=4-seed=0"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert found["run-1"].info.run_id == tracking.run_id
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in found.items()}
    assert parents == {"run-1": None, "k=2-seed=0": tracking.run_id, "k=4-seed=0": tracking.run_id}


def test_a_trial_s_metrics_stand_at_their_iterations(recorded: tuple[str, Tracking]) -> None:
    from mlflow import MlflowClient

    uri, _ = recorded
    trial = runs(uri)["k=4-seed=0"]
    history = MlflowClient(tracking_uri=uri).get_metric_history(trial.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(10 * i, 100.0 - i) for i in range(1, 301)]
    expected = {"learning_rate", "largest_share", "smallest_share", "reassigned", "active_modules", "seconds"}
    assert expected <= set(trial.data.metrics)
    assert trial.data.metrics["final_loss"] == RESULTS[1].loss
    assert trial.data.metrics["iterations"] == 3000


def test_a_labelled_collection_has_its_metrics_in_every_run(recorded: tuple[str, Tracking]) -> None:
    uri, _ = recorded
    found = {name: (run.data.metrics["accuracy"], run.data.metrics["nmi"]) for name, run in runs(uri).items()}
    assert found == {"run-1": (0.25, 0.5), "k=2-seed=0": (0.5, 0.5), "k=4-seed=0": (0.25, 0.5)}


def test_the_parent_knows_what_became_of_the_crawl(recorded: tuple[str, Tracking]) -> None:
    uri, _ = recorded
    metrics = runs(uri)["run-1"].data.metrics
    found = {name: value for name, value in metrics.items() if name.startswith("ingest.")}
    expected = {"records": 7, "accepted": 6, "rejected.truncated": 1, "bytes": 5e6, "seconds": 2.5}
    assert found == {f"ingest.{name}": value for name, value in expected.items()}


def test_a_trial_s_parameters_are_its_own(recorded: tuple[str, Tracking]) -> None:
    uri, _ = recorded
    assert runs(uri)["k=2-seed=0"].data.params["clustering.k"] == "2"


def test_the_parent_knows_configuration_and_selection(recorded: tuple[str, Tracking]) -> None:
    uri, _ = recorded
    parent = runs(uri)["run-1"].data
    assert parent.params["clustering.schedule.window"] == "60"
    tags = ("collection", "crawl_ids", "selected_k", "selected_seed")
    assert [parent.tags[name] for name in tags] == ["#paris", "2024-05", "4", "0"]


def test_artifacts_lie_in_the_workspace(recorded: tuple[str, Tracking]) -> None:
    from mlflow.artifacts import download_artifacts

    uri, tracking = recorded
    workspace = Path(uri.removeprefix("sqlite:///")).parent
    (mosaic,) = (workspace / "mlartifacts").rglob("mosaic.png")
    assert tracking.run_id is not None
    assert tracking.run_id in mosaic.parts
    folder = Path(download_artifacts(run_id=tracking.run_id, tracking_uri=uri))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {"mosaic.png", "clusters/cluster-000.png", "clusters.parquet", "run.json"}
    assert (folder / "run.json").read_bytes() == b"content of #paris/runs/run-1/run.json"


def test_a_restart_replaces_what_it_recorded(tmp_path: Path) -> None:
    first, second = record(tmp_path, results=RESULTS[:1]), record(tmp_path, results=RESULTS[:1])
    found = runs(tracking_uri(LocalStorage(str(tmp_path)), config(tmp_path)))
    assert {run.info.run_id for run in found.values()}.isdisjoint({first.run_id})
    assert found["run-1"].info.run_id == second.run_id


def test_artifacts_of_what_is_replaced_are_deleted_even_where_the_user_deleted_its_run(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = tracking_uri(LocalStorage(str(tmp_path)), config(tmp_path))
    first = record(tmp_path, results=RESULTS[:1])
    MlflowClient(tracking_uri=uri).delete_run(first.run_id)
    second = record(tmp_path, results=RESULTS[:1])
    third = record(tmp_path, results=RESULTS[:1])
    kept = {path.parts[-3] for path in (tmp_path / "mlartifacts").rglob("mosaic.png")}
    assert kept == {third.run_id}
    assert second.error is None


def test_what_was_recorded_of_a_run_is_deleted_and_nothing_of_another(tmp_path: Path) -> None:
    kept, _ = (record(tmp_path, run_id=run_id, results=RESULTS[:1]) for run_id in ("run-1", "run-2"))
    storage = LocalStorage(str(tmp_path))
    uri = tracking_uri(storage, config(tmp_path))
    for _ in range(2):
        untrack(storage, uri, "#paris", "run-2")
        assert {run.data.tags["visual_trends.run_id"] for run in all_runs(uri)} == {"run-1"}
        assert {path.parts[-3] for path in (tmp_path / "mlartifacts").rglob("mosaic.png")} == {kept.run_id}
    untrack(storage, uri, "#rome", "run-1")


def test_another_workspace_on_the_same_server_is_left_alone(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/shared.db"
    first = record(tmp_path / "a", uri, results=RESULTS[:1])
    second = record(tmp_path / "b", uri, results=RESULTS[:1])
    from mlflow import MlflowClient

    for tracking in (first, second):
        assert MlflowClient(tracking_uri=uri).get_run(tracking.run_id).info.lifecycle_stage == "active"


def test_two_jobs_at_once_on_a_new_database(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        outcomes = pool.starmap(record, [(tmp_path, None, name, RESULTS[:1]) for name in ("run-1", "run-2")])
    assert [tracking.error for tracking in outcomes] == [None, None]


def test_the_console_stays_quiet(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.integration.test_tracking import *;"
        f"record(Path({str(tmp_path)!r}), results=RESULTS[:1])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_a_server_that_is_down_costs_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"http://user:secret@127.0.0.1:{closed_port()}"
    started = time.monotonic()
    tracking = record(tmp_path, uri)
    assert time.monotonic() - started < 20
    assert tracking.run_id is None
    assert tracking.error
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 1
    assert without_credentials(uri) in printed
    assert "secret" not in printed + tracking.uri + tracking.error


def test_an_artifact_that_cannot_be_attached_costs_a_warning_and_no_other_artifact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, paths = LocalStorage(str(tmp_path)), RunPaths("#paris", "run-1")
    for key in (paths.clusters, paths.marker):
        storage.write_bytes(key, b"content")
    artifacts = [paths.mosaic, paths.clusters]
    first = track(storage, config(tmp_path), "run-1", [CRAWL], RESULTS[:1], [None], RESULTS[0], artifacts)
    assert first.error
    assert first.error.startswith("mosaic.png: ")
    assert "warning" in capsys.readouterr().out
    assert finish(storage, config(tmp_path), first, paths.marker) == first
    uploaded = {path.name for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()}
    assert uploaded == {"clusters.parquet", "run.json"}
    assert runs(tracking_uri(storage, config(tmp_path)))["run-1"].info.status == "FINISHED"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secret@host:5000/x", "http://host:5000/x"),
        ("postgresql://me:p%40ss@db/mlflow", "postgresql://db/mlflow"),
        ("sqlite:////a@b/mlflow.db", "sqlite:////a@b/mlflow.db"),
        (
            "no route to http://me:secret@host/api, see me@example.org",
            "no route to http://host/api, see me@example.org",
        ),
    ],
)
def test_credentials_are_never_shown(uri: str, shown: str) -> None:
    assert without_credentials(uri) == shown


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server that keeps artifacts itself."""
    folder, port = tmp_path_factory.mktemp("server"), closed_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    options += ["--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *options], env=environment, cwd=folder, stdout=log, stderr=log
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                if requests.get(f"{uri}/health", timeout=1).ok:
                    break
            except requests.RequestException:
                time.sleep(0.5)
        else:
            pytest.fail((folder / "log").read_text())
        yield uri
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@pytest.mark.slow
def test_a_server_takes_runs_and_artifacts_over_http(server: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    tracking = record(tmp_path, server)
    assert tracking == Tracking(server, tracking.run_id)
    assert {run.info.status for run in runs(server).values()} == {"FINISHED"}
    listed = {item.path for item in MlflowClient(tracking_uri=server).list_artifacts(tracking.run_id)}
    assert listed == {"mosaic.png", "clusters", "clusters.parquet", "run.json"}
    assert not (tmp_path / "mlartifacts").exists()

    again = record(tmp_path, server)
    assert again.error is None
    assert not MlflowClient(tracking_uri=server).list_artifacts(tracking.run_id)
    untrack(LocalStorage(str(tmp_path)), server, "#paris", "run-1")
    assert not MlflowClient(tracking_uri=server).list_artifacts(again.run_id)
    assert not runs(server)
