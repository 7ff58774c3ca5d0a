"""The whole job, killed in each stage and started again: it ends like an undisturbed job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.test_cluster_collection import JOB, ROOT, SMALL, environment, run_job
from tests.support.crawl_files import encoded, photograph

pytestmark = pytest.mark.faults

FIRST_FILE_OF = {
    "ingest": "things/crawls/*/plan.parquet",
    "cluster": "things/runs/*/trials/*/checkpoint.pt",
    "report": "things/runs/*/clusters.parquet",
    "tracking": "mlflow.db",
}
"""A file that appears early in each stage."""


def arguments(crawl: Path, workspace: Path) -> list[str]:
    return ["--collection=things", f"--source={crawl}", f"--workspace={workspace}", *SMALL]


def results(workspace: Path) -> dict[str, object]:
    """Return the results of the job that do not contain times."""
    (run,) = (workspace / "things" / "runs").iterdir()
    tables = {name: pq.read_table(run / name).to_pylist() for name in ("clusters.parquet", "prototypes.parquet")}
    return {**tables, "mosaic.png": (run / "mosaic.png").read_bytes()}


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crawl")
    for index in range(30):
        (folder / f"{index}.jpg").write_bytes(encoded(photograph(index % 3), quality=60 + index))
    return folder


@pytest.fixture(scope="module")
def undisturbed(crawl: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The results of an undisturbed job."""
    workspace = tmp_path_factory.mktemp("workspace")
    done = run_job(*arguments(crawl, workspace))
    assert done.returncode == 0, done.stderr
    return results(workspace)


@pytest.mark.parametrize("stage", FIRST_FILE_OF)
def test_a_job_that_was_killed_in_any_stage_ends_alike(
    stage: str, crawl: Path, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    command = [sys.executable, JOB, *arguments(crawl, tmp_path)]
    quiet = subprocess.DEVNULL
    job = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=quiet, stderr=quiet, start_new_session=True)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob(FIRST_FILE_OF[stage])):
        assert job.poll() is None and time.monotonic() < deadline, "the stage never began"
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert not list(tmp_path.glob("things/runs/*/run.json")) or stage == "tracking"
    again = run_job(*arguments(crawl, tmp_path))
    assert again.returncode == 0, again.stderr
    assert results(tmp_path) == undisturbed
