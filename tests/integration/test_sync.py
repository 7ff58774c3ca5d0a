"""Tests of recording reports later that MLflow lacks, with a real database."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import JobConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.paths import RunPaths
from pipeline.reporting.sync import sync_tracking
from pipeline.storage import LocalStorage, read_json
from tests.integration.test_tracking import database, runs, versions
from tests.support.made_report import make_report
from tests.support.mlflow_server import closed_port

ROOT = Path(__file__).parents[2]


def config(workspace: Path, uri: str | None = None) -> JobConfig:
    return JobConfig(collection="#paris", workspace=str(workspace), stages=["cluster"], tracking_uri=uri)


def recorded_as(storage: LocalStorage, run_id: str) -> str:
    """Return the id in MLflow of a run, which must be completely recorded."""
    tracking = read_json(storage, RunPaths("#paris", run_id).marker)["tracking"]
    assert tracking["error"] is None
    return str(tracking["run_id"])


def test_missing_runs_are_recorded_and_others_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage, uri = LocalStorage(str(tmp_path)), database(tmp_path)
    make_report(storage, "#paris", "run-1", "2026-01")
    sync_tracking(storage, config(tmp_path))
    make_report(storage, "#paris", "run-2", "2026-02")
    before = recorded_as(storage, "run-1")
    capsys.readouterr()
    sync_tracking(storage, config(tmp_path))
    console = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sync")]
    assert console == [f"sync      run-1 is already in {uri}", f"sync      run-2 is recorded in {uri}"]
    expected = {f"{tmp_path.name}/run-1": before, f"{tmp_path.name}/run-2": recorded_as(storage, "run-2")}
    assert {name: version.run_id for name, version in versions(uri).items()} == expected


def test_a_run_that_the_database_lost_is_recorded_again(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    storage, uri = LocalStorage(str(tmp_path)), database(tmp_path)
    make_report(storage, "#paris")
    sync_tracking(storage, config(tmp_path))
    lost = runs(uri)["run-1"].info.run_id
    MlflowClient(tracking_uri=uri).delete_run(lost)
    sync_tracking(storage, config(tmp_path))
    assert runs(uri)["run-1"].info.run_id != lost


def test_a_run_whose_model_was_never_recorded_is_not_complete(tmp_path: Path) -> None:
    storage, paths = LocalStorage(str(tmp_path)), RunPaths("#paris", "run-1")
    make_report(storage, "#paris")
    checkpoint = storage.read_bytes(paths.checkpoint("k=4-seed=0"))
    storage.delete(paths.checkpoint("k=4-seed=0"))
    with pytest.raises(PipelineError, match="1 of 1 run not completely recorded"):
        sync_tracking(storage, config(tmp_path))
    storage.write_bytes(paths.checkpoint("k=4-seed=0"), checkpoint)
    sync_tracking(storage, config(tmp_path))
    assert len(versions(database(tmp_path))) == 1


def test_a_damaged_report_does_not_affect_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = LocalStorage(str(tmp_path))
    make_report(storage, "#paris", "run-1", "2026-01")
    make_report(storage, "#paris", "run-2", "2026-02")
    storage.delete(RunPaths("#paris", "run-1").trial_marker("k=2-seed=0"))
    with pytest.raises(PipelineError, match="1 of 2 runs"):
        sync_tracking(storage, config(tmp_path))
    assert "run-1 cannot be recorded: " in capsys.readouterr().out
    assert "run-2" in runs(database(tmp_path))


def test_a_server_that_is_still_down_leaves_run_json_unchanged(tmp_path: Path) -> None:
    storage, marker = LocalStorage(str(tmp_path)), RunPaths("#paris", "run-1").marker
    make_report(storage, "#paris")
    before = storage.read_bytes(marker)
    with pytest.raises(PipelineError, match="cannot be recorded in http://127"):
        sync_tracking(storage, config(tmp_path, f"http://me:secret@127.0.0.1:{closed_port()}"))
    assert storage.read_bytes(marker) == before


def test_a_collection_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no reported run"):
        sync_tracking(LocalStorage(str(tmp_path)), config(tmp_path))


def test_a_table_of_collections_is_refused() -> None:
    command = [sys.executable, "jobs/cluster_collection.py", "--manifest", "some.csv", "--sync-tracking"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: --sync-tracking: --forget and --sync-tracking work on one collection and run no stage; give one of them"
    )
