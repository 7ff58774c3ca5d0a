"""The whole job, killed in each stage or on a disk that fills in each stage: it ends like an undisturbed job."""

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
from tests.support.small_disk import enlarge, small_disk

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


def size_of(folder: Path) -> int:
    """Return the bytes that the files of `folder` occupy on a file system with blocks of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crawl")
    for index in range(30):
        (folder / f"{index}.jpg").write_bytes(encoded(photograph(index % 3), quality=60 + index))
    return folder


@pytest.fixture(scope="module")
def undisturbed(crawl: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], dict[str, int]]:
    """The results of an undisturbed job, and the size of its workspace after each stage."""
    workspace = tmp_path_factory.mktemp("workspace")
    sizes = {}
    for stage in ("ingest", "cluster", "report"):
        done = run_job(*arguments(crawl, workspace), f"--stages={stage}")
        assert done.returncode == 0, done.stderr
        sizes[stage] = size_of(workspace)
    return results(workspace), sizes


@pytest.mark.parametrize("stage", FIRST_FILE_OF)
def test_a_job_that_was_killed_in_any_stage_ends_alike(
    stage: str, crawl: Path, undisturbed: tuple[dict[str, object], dict[str, int]], tmp_path: Path
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
    assert results(tmp_path) == undisturbed[0]


@pytest.mark.parametrize("stage", ["ingest", "cluster", "report"])
def test_a_disk_that_fills_in_any_stage_is_one_line_and_the_job_continues_when_there_is_room(
    stage: str, crawl: Path, undisturbed: tuple[dict[str, object], dict[str, int]], tmp_path: Path
) -> None:
    expected, sizes = undisturbed
    before = {"ingest": 0, "cluster": sizes["ingest"], "report": sizes["cluster"]}[stage]
    workspace = tmp_path / "small"
    workspace.mkdir()
    with small_disk(workspace, before // 1024 + 24):
        full = run_job(*arguments(crawl, workspace))
        assert full.returncode == 1, full.stdout
        (line,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in line or "disk is full" in line
        assert "Traceback" not in full.stderr
        assert not list(workspace.glob("things/runs/*/run.json"))
        enlarge(workspace, 256 * 1024)
        again = run_job(*arguments(crawl, workspace))
        assert again.returncode == 0, again.stderr
        assert results(workspace) == expected
