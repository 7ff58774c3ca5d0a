"""Training on clusters of which parts die or are stuck: the result is the one that there would have been."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.storage import open_storage, read_json
from tests.crawl_files import encoded, photograph
from tests.local_cluster import Cluster, Node, cluster_of_one, ended, kill, wait_until
from tests.s3_server import S3Server, s3_bucket, s3_endpoint, s3_server

__all__ = ["s3_bucket", "s3_endpoint", "s3_server"]

pytestmark = pytest.mark.slow
TRIAL = "k=3-seed=0"
TRAINS = "ray::RayTrainWorker"
SETTINGS = (
    "--image-size=16",
    "--k=3",
    "--transforms=color,affine",
    "--set=ingest.records_per_shard=8",
    "--set=clustering.batch_size=12",
    "--set=clustering.cpus_per_worker=1",
    "--set=clustering.checkpoint_every_s=0",
    "--set=clustering.schedule={window: 10, min_iterations: 200, max_iterations: 200, final_iterations: 100}",
)
PATIENCE_S = 280


@pytest.fixture(scope="module")
def cluster(s3_endpoint: str) -> Iterator[Cluster]:
    with cluster_of_one(s3_endpoint) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(30):
        (folder / f"{i:02d}.jpg").write_bytes(encoded(photograph(i)))
    return folder


def command(source: Path, workspace: str, workers: int, *more: str) -> tuple[str, ...]:
    job = ("jobs/cluster_collection.py", "--collection=c", f"--source={source}", f"--workspace={workspace}")
    # No server is there: that costs a warning, not the job.
    return (
        *job,
        "--stages=ingest,cluster",
        "--tracking-uri=http://127.0.0.1:9",
        f"--workers={workers}",
        *SETTINGS,
        *more,
    )


def loss(workspace: str) -> float:
    """Of the finished trial."""
    storage = open_storage(workspace)
    (marker,) = (key for key in storage.list("c/runs") if key.endswith("/trial.json"))
    return float(read_json(storage, marker)["loss"])


def checkpoints(workspace: str) -> int:
    return sum(key.endswith("/checkpoint.pt") for key in open_storage(workspace).list("c"))


def while_it_trains(workspace: str, node: Node, workers: int) -> Callable[[], bool]:
    return lambda: bool(checkpoints(workspace)) and len(node.workers(TRAINS)) == workers


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Loss of two workers to whom nothing happens."""
    workspace = str(tmp_path_factory.mktemp("undisturbed"))
    code, _, err = ended(cluster.start(*command(photographs, workspace, 2)), PATIENCE_S)
    assert code == 0, err
    return loss(workspace)


def test_a_killed_worker_changes_nothing(
    cluster: Cluster, photographs: Path, undisturbed: float, tmp_path: Path
) -> None:
    job = cluster.start(*command(photographs, str(tmp_path), 2))
    wait_until(while_it_trains(str(tmp_path), cluster.head, 2))
    kill(max(cluster.head.workers(TRAINS)))
    code, out, err = ended(job, PATIENCE_S)
    assert code == 0, err
    assert f"c {TRIAL}: its workers died, it goes on from its last checkpoint" in out
    assert f"c {TRIAL}: continues at iteration" in out
    assert loss(str(tmp_path)) == undisturbed


def test_a_stuck_worker_ends_the_attempt(
    cluster: Cluster, photographs: Path, undisturbed: float, tmp_path: Path
) -> None:
    job = cluster.start(*command(photographs, str(tmp_path), 2, "--set=clustering.collective_timeout_s=15"))
    wait_until(while_it_trains(str(tmp_path), cluster.head, 2))
    os.kill(max(cluster.head.workers(TRAINS)), signal.SIGSTOP)
    code, out, err = ended(job, PATIENCE_S)
    assert code == 0, err
    assert f"c {TRIAL}: its workers died, it goes on from its last checkpoint" in out
    assert loss(str(tmp_path)) == undisturbed


def test_a_lost_node_changes_nothing(cluster: Cluster, photographs: Path, tmp_path: Path) -> None:
    """Three workers on two nodes; one node dies, and another takes its place."""
    whole = str(tmp_path / "whole")
    with cluster.another_node(cpus=1):
        code, _, err = ended(cluster.start(*command(photographs, whole, 3)), PATIENCE_S)
        assert code == 0, err
    disturbed = str(tmp_path / "disturbed")
    with cluster.another_node(cpus=1) as node:
        job = cluster.start(*command(photographs, disturbed, 3))
        wait_until(while_it_trains(disturbed, node, 1))
        node.kill()
        with cluster.another_node(cpus=1):
            code, out, err = ended(job, PATIENCE_S)
    assert code == 0, err
    assert f"c {TRIAL}: its workers died, it goes on from its last checkpoint" in out
    assert loss(disturbed) == loss(whole)


def test_storage_that_fails_for_a_while_changes_nothing(
    cluster: Cluster, photographs: Path, undisturbed: float, s3_server: S3Server, s3_bucket: str
) -> None:
    workspace = f"s3://{s3_bucket}/ws"
    refused: list[str] = []
    works = threading.Event()

    def refuse(method: str, path: str) -> tuple[str, str] | None:
        if works.is_set() or "/trials/" not in path or method != "PUT":
            return None
        refused.append(path)
        return "503 Service Unavailable", "ServiceUnavailable"

    job = cluster.start(*command(photographs, workspace, 2))
    wait_until(lambda: bool(checkpoints(workspace)))
    s3_server.refuse = refuse
    wait_until(lambda: len(refused) > 3)
    time.sleep(60)
    works.set()
    code, out, err = ended(job, PATIENCE_S)
    assert code == 0, err
    assert "checkpoint.pt is not written: cannot write" in out and "trying again" in out
    assert "is written, at attempt" in out
    assert loss(workspace) == undisturbed


def test_a_worker_that_dies_each_time_fails_its_trial_in_one_line(
    cluster: Cluster, photographs: Path, tmp_path: Path
) -> None:
    job = cluster.start(*command(photographs, str(tmp_path), 1, "--set=clustering.max_failures=1"))
    killed: set[int] = set()
    deadline = time.monotonic() + PATIENCE_S
    while job.poll() is None and time.monotonic() < deadline:
        for worker in cluster.head.workers(TRAINS) - killed:
            if checkpoints(str(tmp_path)):
                killed.add(worker)
                kill(worker)
        time.sleep(0.2)
    code, _, err = ended(job)
    assert code == 1
    assert err.splitlines()[-1] == f"error: trial {TRIAL}: its workers died 2 times; see Ray's logs"
    assert len(killed) == 2
