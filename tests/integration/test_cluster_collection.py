"""The job run as a script, killed and started again, and submitted to a cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import requests
import torch

from pipeline.clustering.data.images import ImageSet, decode_shard
from pipeline.clustering.training import TrialTraining
from pipeline.clustering.trial import Trial
from pipeline.config import load_config
from pipeline.shards import complete_crawls, shard_keys
from pipeline.storage import LocalStorage
from tests.support.crawl_files import encoded, photograph
from tests.support.trial_tasks import trial_task

ROOT = Path(__file__).parents[2]
JOB = "jobs/cluster_collection.py"
SMALL = [
    "--image-size=16",
    "--k=2,3",
    "--transforms=color,affine,tps",
    "--set=clustering.batch_size=8",
    "--set=clustering.cpus_per_worker=1",  # as in the uninterrupted trial with which results are compared
    "--set=clustering.checkpoint_every_s=0",
    "--set=clustering.schedule={window: 5, min_iterations: 10, max_iterations: 60, final_iterations: 10}",
]


def environment() -> dict[str, str]:
    """Return the environment variables without those of Ray; `python` is the interpreter that runs the tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "PATH": path}


def run_job(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, JOB, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


def trials(workspace: Path) -> dict[str, float]:
    """Return the losses of all finished trials, by name."""
    markers = workspace.glob("things/runs/*/trials/*/trial.json")
    return {marker.parent.name: json.loads(marker.read_text())["loss"] for marker in markers}


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crawl")
    for index in range(30):
        (folder / f"{index}.jpg").write_bytes(encoded(photograph(index % 3), quality=60 + index))
    (folder / "broken.jpg").write_bytes(b"<html>")
    return folder


@pytest.fixture(scope="module")
def finished(crawl: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Workspace and console output of a job that was killed in its first trial and then run again."""
    workspace = tmp_path_factory.mktemp("workspace")
    arguments = ["--collection=things", f"--source={crawl}", f"--workspace={workspace}", *SMALL]
    job = subprocess.Popen(
        [sys.executable, JOB, *arguments],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(workspace.glob("things/runs/*/trials/k=2-seed=0/checkpoint.pt")):
        assert job.poll() is None and time.monotonic() < deadline, "the job never wrote a checkpoint"
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert not trials(workspace), "the job was killed after it had finished a trial"
    again = run_job(*arguments)
    assert again.returncode == 0, again.stderr
    return workspace, again.stdout


@pytest.mark.slow
def test_one_command_writes_all_results(finished: tuple[Path, str]) -> None:
    workspace, console = finished
    (run,) = (workspace / "things" / "runs").iterdir()
    document = json.loads((run / "run.json").read_text())
    assert document["counts"]["images"] == document["counts"]["assigned"] == 30
    assert document["counts"]["records"] == 31
    assert set(trials(workspace)) == {"k=2-seed=0", "k=3-seed=0"}
    clusters = pq.read_table(run / "clusters.parquet")
    assert clusters.num_rows == 30
    assert {"negative_log_likelihood", "posterior", "runner_up", "transform_color", "transform_tps"} <= set(
        clusters.column_names
    )
    assert len(list((run / "clusters").glob("*.png"))) == document["selected"]["k"]
    assert (run / "mosaic.png").stat().st_size > 0
    assert "31 records: 30 accepted, 1 rejected (1 not_an_image)" in console
    assert re.search(
        r"^cluster +things k=3-seed=0: done, loss .*; [\d,]+ images in .* images/s$", console, re.MULTILINE
    )
    assert re.search(r"^cluster +2 trials trained in [\d.]+ (s|min.*)$", console, re.MULTILINE)
    assert [line.split()[1] for line in console.splitlines()[-3:-1]] == [str(run), str(run / "report.html")]
    assert f"sqlite:///{workspace / 'mlflow.db'}" in console.splitlines()[-1]


@pytest.mark.slow
def test_the_same_command_again_does_nothing(crawl: Path, finished: tuple[Path, str]) -> None:
    workspace, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (workspace / "things").rglob("*") if path.is_file()}
    again = run_job("--collection=things", f"--source={crawl}", f"--workspace={workspace}", *SMALL)
    assert again.returncode == 0, again.stderr
    assert "2 of 2 trials" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_a_killed_job_continues_where_it_stopped(finished: tuple[Path, str]) -> None:
    _, console = finished
    assert "is complete already" in console, "the crawl was ingested again"
    assert "k=2-seed=0: continues at iteration" in console


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Number of threads of a worker when two trials share two CPUs; rounding depends on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_killed_job_gives_the_result_of_an_uninterrupted_one(
    finished: tuple[Path, str], tmp_path: Path, one_thread: None
) -> None:
    workspace, _ = finished
    (run,) = (workspace / "things" / "runs").iterdir()
    config = load_config(run / "config.yaml", {}, []).clustering
    storage = LocalStorage(str(workspace))
    (shard,) = shard_keys(complete_crawls(storage, "things"))
    images = ImageSet.of(torch.from_numpy(decode_shard(storage, shard)))
    other_storage = LocalStorage(str(tmp_path))
    for k in config.k:
        trial = Trial(k, config.seed)
        uninterrupted = TrialTraining(trial_task(other_storage, config, trial), images, torch.device("cpu")).run()
        assert trials(workspace)[trial.name] == uninterrupted.loss


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k=99"], "99 is above the 31 records"),
        (["--transforms=rotation"], "rotation"),
        (["--set=clustering.colour=1"], "clustering.colour: unknown key"),
        (["--source=/nowhere"], "/nowhere"),
        (["--workers=64"], "64 CPUs are needed"),
    ],
)
def test_invalid_arguments_are_refused_before_any_work(
    crawl: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    workspace = tmp_path / "workspace"
    refused = run_job("--collection=things", f"--source={crawl}", f"--workspace={workspace}", "--k=2", *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1, "one line, no traceback"
    assert not workspace.exists()


@pytest.mark.parametrize(("job", "flag"), [(JOB, "--select-k"), ("jobs/assign_collection.py", "--crawl")])
def test_help_imports_no_heavy_package(job: str, flag: str) -> None:
    check = (
        "import runpy, sys; sys.argv = ['job', '--help']\n"
        f"try: runpy.run_path('{job}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'ray', 'mlflow', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert flag in done.stdout


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """Address of the dashboard of a cluster that `ray start` started."""
    port = free_port()
    head = subprocess.Popen(
        [
            *("ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
            *(f"--port={free_port()}", f"--dashboard-port={port}", f"--ray-client-server-port={free_port()}"),
            *(f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"),
        ],
        env={**environment(), "RAY_AUTH_MODE": "disabled", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while True:
        try:
            requests.get(f"{address}/api/version", timeout=5).raise_for_status()
            break
        except requests.RequestException:
            assert head.poll() is None and time.monotonic() < deadline, "the cluster did not start"
            time.sleep(0.5)
    yield address
    head.terminate()
    head.wait(timeout=60)


def submit(dashboard: str, name: str, *arguments: str) -> tuple[int, int | None]:
    """Submit a job; return the exit codes of `ray job submit` and of the driver of the job."""
    command = ["ray", "job", "submit", "--address", dashboard, "--submission-id", name, "--working-dir", "."]
    done = subprocess.run(
        [*command, "--", "python", JOB, *arguments],
        cwd=ROOT,
        env={**environment(), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, requests.get(f"{dashboard}/api/jobs/{name}", timeout=30).json()["driver_exit_code"]


@pytest.mark.slow
def test_a_submitted_job_on_two_workers(dashboard: str, crawl: Path, tmp_path: Path) -> None:
    arguments = ["--collection=things", f"--source={crawl}", f"--workspace={tmp_path}", *SMALL, "--k=2", "--workers=2"]
    assert submit(dashboard, "good", *arguments) == (0, 0)
    assert list(trials(tmp_path)) == ["k=2-seed=0"]
    assert list(tmp_path.glob("things/runs/*/run.json"))


@pytest.mark.slow
def test_the_driver_has_the_exit_code_of_the_script(dashboard: str, crawl: Path, tmp_path: Path) -> None:
    arguments = [
        "--collection=things",
        f"--source={crawl}",
        f"--workspace={tmp_path}",
        "--k=2",
        "--transforms=rotation",
    ]
    assert submit(dashboard, "bad", *arguments) == (1, 2)
