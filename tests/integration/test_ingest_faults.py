"""Killed processes, nodes and drivers, full disks and refused writes: no record is lost, and none is stored twice.

One cluster runs all jobs of this file. A web server holds back its responses until the test has killed its targets.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import LocalStorage, Storage, open_storage
from tests.support.crawl_files import encoded, photograph
from tests.support.http_server import Handler, Site, serving
from tests.support.local_cluster import PATIENCE_S, Cluster, cluster_of_one, ended, kill, wait_until
from tests.support.s3_server import S3Server, s3_bucket, s3_endpoint, s3_server
from tests.support.small_disk import enlarge, small_disk

__all__ = ["s3_bucket", "s3_endpoint", "s3_server"]

pytestmark = pytest.mark.slow
RECORDS, PER_SHARD = 24, 3


def start(cluster: Cluster, source: Path, workspace: str, **values: Any) -> subprocess.Popen[str]:
    config = {
        "collection": "c",
        "source": str(source),
        "workspace": workspace,
        "tracking_uri": "http://127.0.0.1:9",
        "ingest.image_size": 16,
        "ingest.records_per_shard": PER_SHARD,
        "ingest.http.allow_private_hosts": True,
        "ingest.http.deadline_s": PATIENCE_S,
        "ingest.http.read_timeout_s": PATIENCE_S,
        "ingest.http.rounds": 1,
        **values,
    }
    return cluster.start("-m", "tests.support.ingest_job", json.dumps(config))


def run(cluster: Cluster, source: Path, workspace: str, **values: Any) -> tuple[int | None, str, str]:
    return ended(start(cluster, source, workspace, **values))


@pytest.fixture(scope="module")
def cluster(s3_endpoint: str) -> Iterator[Cluster]:
    with cluster_of_one(s3_endpoint) as cluster:
        yield cluster


@dataclass
class Gate:
    """A web server of photographs that holds back some of its responses until `open` is set."""

    site: Site
    open: threading.Event = field(default_factory=threading.Event)
    free: int = 0
    """Photographs with lower numbers are sent immediately."""

    def __post_init__(self) -> None:
        self.site.pages["/photo"] = self._photo

    def _photo(self, handler: Handler) -> None:
        number = int(handler.path[7:])
        if number >= self.free:
            self.open.wait(PATIENCE_S)
        handler.reply(200, encoded(photograph(number % (RECORDS - 4))))  # the last four are duplicates

    def close(self, free: int = 0) -> None:
        self.free = free
        self.open.clear()
        self.site.seen.clear()


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    with serving() as site:
        gate = Gate(site)
        yield gate
        gate.open.set()


@pytest.fixture(scope="module")
def urls(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "urls.txt"
    path.write_text("".join(f"{gate.site.url(f'/photo/{i}')}\n" for i in range(RECORDS)))
    return path


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, gate: Gate, urls: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Published files of an undisturbed crawl of `urls`."""
    workspace = tmp_path_factory.mktemp("undisturbed")
    gate.open.set()
    code, out, err = run(cluster, urls, str(workspace))
    assert code == 0, err
    assert f"{RECORDS} records: {RECORDS - 4} accepted, 4 rejected (4 duplicate)" in out
    return contents(LocalStorage(str(workspace)))


def contents(storage: Storage) -> dict[str, bytes]:
    """All published files by key, without the marker, which contains times."""
    return {key: storage.read_bytes(key) for key in storage.list("") if not key.endswith("/crawl.json")}


def test_killed_workers_lose_nothing_and_repeat_nothing(
    cluster: Cluster, gate: Gate, urls: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    gate.close()
    job = start(cluster, urls, str(tmp_path))
    wait_until(lambda: len(cluster.head.workers("ray::build_shard")) == 2 and gate.site.running >= 2 * PER_SHARD)
    for worker in cluster.head.workers("ray::build_shard"):
        kill(worker)
    gate.open.set()
    code, _, err = ended(job)
    assert code == 0, err
    assert contents(LocalStorage(str(tmp_path))) == undisturbed


def test_a_killed_node_loses_nothing_and_repeats_nothing(
    cluster: Cluster, gate: Gate, urls: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    gate.close()
    with cluster.another_node() as node:
        job = start(cluster, urls, str(tmp_path))
        wait_until(lambda: len(node.workers("ray::build_shard")) == 2 and gate.site.running >= 4 * PER_SHARD)
        node.kill()
        gate.open.set()
        code, _, err = ended(job)
    assert code == 0, err
    assert contents(LocalStorage(str(tmp_path))) == undisturbed


def test_a_killed_driver_is_continued_by_the_same_command(
    cluster: Cluster, gate: Gate, urls: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    gate.close(free=2 * PER_SHARD)
    job = start(cluster, urls, str(tmp_path))
    wait_until(lambda: len(list(tmp_path.glob("c/crawls/*/shards/*.parquet"))) == 2)
    job.kill()
    job.communicate()
    assert not list(tmp_path.glob("c/crawls/*/crawl.json"))
    gate.site.seen.clear()
    gate.open.set()
    code, out, err = run(cluster, urls, str(tmp_path))
    assert code == 0, err
    assert "2 of 8 shards are done already, 6 to build" in out
    assert not {f"/photo/{i}" for i in range(2 * PER_SHARD)} & set(gate.site.hits())
    assert contents(LocalStorage(str(tmp_path))) == undisturbed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(12):
        (folder / f"{i:02d}.jpg").write_bytes(encoded(photograph(i)))
    return folder


def assert_one_line(code: int | None, err: str, start: str, cause: str) -> None:
    """Check that the job failed with an error of one line that begins with `start` and has `cause`."""
    assert code == 1
    (line,) = [line for line in err.splitlines() if "\tINFO " not in line]  # Ray logs that it connects to a cluster
    assert line.startswith(start)
    assert cause in line


@pytest.fixture(scope="module")
def whole(cluster: Cluster, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Published files of a crawl of `folder` in which every write succeeds."""
    workspace = tmp_path_factory.mktemp("whole")
    code, _, err = run(cluster, folder, str(workspace))
    assert code == 0, err
    return contents(LocalStorage(str(workspace)))


def test_a_full_disk_is_one_line_and_no_half_shard(
    cluster: Cluster, folder: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    workspace = tmp_path / "small"
    workspace.mkdir()
    with small_disk(workspace, 64):
        code, _, err = run(cluster, folder, str(workspace))
        assert_one_line(code, err, f"error: cannot write {workspace}/c/crawls/", "No space left on device")
        left = contents(LocalStorage(str(workspace)))
        assert 1 < len(left) < len(whole)
        assert left.items() <= whole.items()
        assert not list(workspace.rglob("*.part")) and not list(workspace.rglob("crawl.json"))
        enlarge(workspace, 4096)
        code, _, err = run(cluster, folder, str(workspace))
        assert code == 0, err
        assert contents(LocalStorage(str(workspace))) == whole


def test_a_refused_write_is_one_line_and_no_half_shard(
    cluster: Cluster, folder: Path, whole: dict[str, bytes], s3_server: S3Server, s3_bucket: str
) -> None:
    workspace = f"s3://{s3_bucket}/ws"

    def refuse(method: str, path: str) -> tuple[str, str] | None:
        refused = method == "PUT" and "/shards/shard-000002.tar" in path
        return ("403 Forbidden", "AccessDenied") if refused else None

    s3_server.refuse = refuse
    code, _, err = run(cluster, folder, workspace)
    assert_one_line(code, err, f"error: cannot write {workspace}/c/crawls/", "AccessDenied")
    left = set(open_storage(workspace).list(""))
    assert any(key.endswith("/plan.parquet") for key in left)
    assert not [key for key in left if "/shard-000002." in key or key.endswith("/crawl.json")]
    s3_server.refuse = lambda method, path: None
    code, _, err = run(cluster, folder, workspace)
    assert code == 0, err
    assert contents(open_storage(workspace)) == whole


def test_a_task_that_dies_in_every_attempt_is_one_line(
    cluster: Cluster, gate: Gate, urls: Path, tmp_path: Path
) -> None:
    gate.close(free=RECORDS - 1)
    job = start(cluster, urls, str(tmp_path), **{"ingest.records_per_shard": RECORDS})
    killed: set[int] = set()
    while job.poll() is None:
        if gate.site.running:
            for worker in cluster.head.workers("ray::build_shard"):
                if worker not in killed:
                    killed.add(worker)
                    kill(worker)
        time.sleep(0.05)
    gate.open.set()
    code, _, err = ended(job)
    assert_one_line(code, err, "error: task 0 died in every attempt", "run the same command again")
    assert len(killed) == 4
    assert not list(tmp_path.rglob("shard-*"))
