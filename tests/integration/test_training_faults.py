"""Training on a cluster whose workers or nodes die or hang gives the same result as undisturbed training.

The cluster has two nodes with one CPU each, and one worker runs on each node.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage import open_storage, read_json
from tests.support.crawl_files import encoded, photograph
from tests.support.local_cluster import Cluster, Node, cluster_of_one, ended, kill, wait_until
from tests.support.s3_server import S3Server, s3_bucket, s3_endpoint, s3_server

__all__ = ["s3_bucket", "s3_endpoint", "s3_server"]

pytestmark = [pytest.mark.slow, pytest.mark.faults]
TRIAL = "k=3-seed=0"
TRAINS = "ray::RayTrainWorker"
SETTINGS = (
    "--collection=c",
    "--stages=ingest,cluster",
    "--image-size=16",
    "--k=3",
    "--transforms=color,affine",
    "--workers=2",
    "--set=ingest.records_per_shard=8",
    "--set=clustering.batch_size=12",
    "--set=clustering.cpus_per_worker=1",
    "--set=clustering.checkpoint_every_s=0",
    "--set=clustering.collective_timeout_s=30",
    "--set=clustering.schedule={window: 10, min_iterations: 150, max_iterations: 150, final_iterations: 50}",
)
PATIENCE_S = 300


@pytest.fixture(scope="module")
def cluster(s3_endpoint: str) -> Iterator[Cluster]:
    with cluster_of_one(s3_endpoint, cpus=1) as cluster:
        yield cluster


@pytest.fixture
def other(cluster: Cluster) -> Iterator[Node]:
    """The second node."""
    with cluster.another_node(cpus=1) as node:
        cluster.wait_for_nodes(2)
        yield node


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(30):
        (folder / f"{i:02d}.jpg").write_bytes(encoded(photograph(i)))
    return folder


def command(source: Path, workspace: str) -> tuple[str, ...]:
    return ("jobs/cluster_collection.py", f"--source={source}", f"--workspace={workspace}", *SETTINGS)


def loss(workspace: str) -> float:
    """Return the loss of the finished trial."""
    storage = open_storage(workspace)
    (marker,) = (key for key in storage.list("c/runs") if key.endswith("/trial.json"))
    return float(read_json(storage, marker)["loss"])


def wait_for_a_checkpoint(workspace: str, node: Node) -> int:
    """Wait for a checkpoint; return the process id of the worker on `node`."""
    wait_until(lambda: any(key.endswith("/checkpoint.pt") for key in open_storage(workspace).list("c")))
    (worker,) = node.workers(TRAINS)
    return worker


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Loss of training without faults."""
    workspace = str(tmp_path_factory.mktemp("undisturbed"))
    with cluster.another_node(cpus=1):
        cluster.wait_for_nodes(2)
        code, _, err = ended(cluster.start(*command(photographs, workspace)), PATIENCE_S)
    assert code == 0, err
    return loss(workspace)


def test_a_killed_worker_changes_nothing(
    cluster: Cluster, photographs: Path, undisturbed: float, other: Node, tmp_path: Path
) -> None:
    job = cluster.start(*command(photographs, str(tmp_path)))
    kill(wait_for_a_checkpoint(str(tmp_path), other))
    code, out, err = ended(job, PATIENCE_S)
    assert code == 0, err
    assert f"c {TRIAL}: its workers died; it continues from its last checkpoint" in out
    assert f"c {TRIAL}: continues at iteration" in out
    assert loss(str(tmp_path)) == undisturbed


def test_a_stuck_worker_ends_the_attempt(
    cluster: Cluster, photographs: Path, undisturbed: float, other: Node, tmp_path: Path
) -> None:
    job = cluster.start(*command(photographs, str(tmp_path)))
    os.kill(wait_for_a_checkpoint(str(tmp_path), other), signal.SIGSTOP)
    code, out, err = ended(job, PATIENCE_S)
    assert code == 0, err
    assert f"c {TRIAL}: its workers died; it continues from its last checkpoint" in out
    assert loss(str(tmp_path)) == undisturbed


def test_a_lost_node_changes_nothing(
    cluster: Cluster, photographs: Path, undisturbed: float, other: Node, tmp_path: Path
) -> None:
    """Another node takes the place of the lost one."""
    job = cluster.start(*command(photographs, str(tmp_path)))
    wait_for_a_checkpoint(str(tmp_path), other)
    other.kill()
    with cluster.another_node(cpus=1):
        code, out, err = ended(job, PATIENCE_S)
    assert code == 0, err
    assert f"c {TRIAL}: its workers died; it continues from its last checkpoint" in out
    assert loss(str(tmp_path)) == undisturbed


@pytest.mark.usefixtures("other")
def test_storage_that_fails_for_a_minute_changes_nothing(
    cluster: Cluster, photographs: Path, undisturbed: float, s3_server: S3Server, s3_bucket: str
) -> None:
    workspace = f"s3://{s3_bucket}/ws"
    works = threading.Event()

    def refuse(method: str, path: str) -> tuple[str, str] | None:
        refused = method == "PUT" and "/checkpoint.pt" in path and not works.is_set()
        return ("503 Service Unavailable", "ServiceUnavailable") if refused else None

    s3_server.refuse = refuse
    job = cluster.start(*command(photographs, workspace))
    wait_until(lambda: any("/config.yaml" in key for key in open_storage(workspace).list("c")))
    time.sleep(60)
    works.set()
    code, out, err = ended(job, PATIENCE_S)
    assert code == 0, err
    assert "checkpoint.pt is not written: cannot write" in out and "trying again" in out
    assert "is written, at attempt" in out
    assert loss(workspace) == undisturbed
