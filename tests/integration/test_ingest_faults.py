"""Processes, nodes and drivers that are killed, full disks and refused writes: no record is lost, none is there twice.

One cluster runs all jobs of this file. A web server holds its answers back until the test has killed what it wants.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import LocalStorage, Storage, open_storage
from tests.crawl_files import encoded, photograph
from tests.http_server import Handler, Site, serving
from tests.s3_server import CREDENTIALS, S3Server, s3_bucket, s3_endpoint, s3_server

__all__ = ["s3_bucket", "s3_endpoint", "s3_server"]

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RECORDS, PER_SHARD = 24, 3
PATIENCE_S = 120


def processes_of(mark: str) -> dict[int, str]:
    """Command lines of the raylet that was started with `mark` in its environment, and of all below it, by process."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    found: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            commands[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if (folder / "comm").read_text() == "raylet\n" and mark.encode() in (folder / "environ").read_bytes():
                found.add(pid)
        except OSError:  # it has just ended
            continue
    while below := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= below
    return {pid: commands[pid] for pid in found if pid in commands}


@dataclass
class Node:
    """A node of a cluster on this machine: `ray start` and all that it started."""

    mark: str
    starter: subprocess.Popen[bytes]

    def workers(self) -> set[int]:
        """Processes that build a shard now."""
        return {pid for pid, command in processes_of(self.mark).items() if command.startswith("ray::build_shard")}

    def kill(self) -> None:
        """All at once, as when the machine loses its power."""
        for pid in [*processes_of(self.mark), self.starter.pid]:
            kill(pid)
        self.starter.wait(timeout=PATIENCE_S)

    def stop(self) -> None:
        self.starter.terminate()
        self.starter.wait(timeout=PATIENCE_S)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def start_node(*options: str, s3: str) -> Node:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    mark = uuid.uuid4().hex
    environment = {
        **kept,
        **CREDENTIALS,
        "AWS_ENDPOINT_URL_S3": s3,
        "RAY_AUTH_MODE": "disabled",
        "PYTHONPATH": str(ROOT),
        "FAULTS_NODE": mark,
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", *options]
    starter = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    node = Node(mark, starter)
    wait_until(lambda: bool(processes_of(mark)) or starter.poll() is not None)
    assert starter.poll() is None, "the node did not start"
    return node


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@dataclass
class Cluster:
    address: str
    head: Node
    s3: str

    @contextmanager
    def another_node(self) -> Iterator[Node]:
        node = start_node(f"--address={self.address}", "--num-cpus=2", s3=self.s3)
        try:
            yield node
        finally:
            node.kill()

    def start(self, source: Path, workspace: str, **values: Any) -> subprocess.Popen[str]:
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
        environment = {**os.environ, "RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "disabled"}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.ingest_job", json.dumps(config)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, source: Path, workspace: str, **values: Any) -> tuple[int | None, str, str]:
        return ended(self.start(source, workspace, **values))


def ended(job: subprocess.Popen[str]) -> tuple[int | None, str, str]:
    """Exit code, standard output and standard error of `job`."""
    out, err = job.communicate(timeout=PATIENCE_S)
    return job.returncode, out, err


@pytest.fixture(scope="module")
def cluster(s3_endpoint: str) -> Iterator[Cluster]:
    """A cluster of one node with two CPUs, started as an administrator starts one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false")
    head = start_node(*options, s3=s3_endpoint)
    yield Cluster(f"127.0.0.1:{port}", head, s3_endpoint)
    head.stop()


@dataclass
class Gate:
    """A web server of photographs that keeps some of its visitors waiting."""

    site: Site
    open: threading.Event = field(default_factory=threading.Event)
    free: int = 0
    """Photographs of lower numbers are sent at once."""

    def __post_init__(self) -> None:
        self.site.pages["/photo"] = self._photo

    def _photo(self, handler: Handler) -> None:
        number = int(handler.path[7:])
        if number >= self.free:
            self.open.wait(PATIENCE_S)
        handler.reply(200, encoded(photograph(number % (RECORDS - 4))))  # the last four are repeats

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
    """What a crawl of `urls` leaves that nothing happens to."""
    workspace = tmp_path_factory.mktemp("undisturbed")
    gate.open.set()
    code, out, err = cluster.run(urls, str(workspace))
    assert code == 0, err
    assert f"{RECORDS} records: {RECORDS - 4} accepted, 4 rejected (4 duplicate)" in out
    return contents(LocalStorage(str(workspace)))


def contents(storage: Storage) -> dict[str, bytes]:
    """Every published file but the marker, which holds times."""
    return {key: storage.read_bytes(key) for key in storage.list("") if not key.endswith("/crawl.json")}


def test_killed_workers_lose_nothing_and_repeat_nothing(
    cluster: Cluster, gate: Gate, urls: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    gate.close()
    job = cluster.start(urls, str(tmp_path))
    wait_until(lambda: len(cluster.head.workers()) == 2 and gate.site.running >= 2 * PER_SHARD)
    for worker in cluster.head.workers():
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
        job = cluster.start(urls, str(tmp_path))
        wait_until(lambda: len(node.workers()) == 2 and gate.site.running >= 4 * PER_SHARD)
        node.kill()
        gate.open.set()
        code, _, err = ended(job)
    assert code == 0, err
    assert contents(LocalStorage(str(tmp_path))) == undisturbed


def test_a_killed_driver_is_continued_by_the_same_command(
    cluster: Cluster, gate: Gate, urls: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    gate.close(free=2 * PER_SHARD)
    job = cluster.start(urls, str(tmp_path))
    wait_until(lambda: len(list(tmp_path.glob("c/crawls/*/shards/*.parquet"))) == 2)
    job.kill()
    job.communicate()
    assert not list(tmp_path.glob("c/crawls/*/crawl.json"))
    gate.site.seen.clear()
    gate.open.set()
    code, out, err = cluster.run(urls, str(tmp_path))
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


@contextmanager
def small_disk(path: Path, kilobytes: int) -> Iterator[None]:
    """A file system of its own at `path`."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)], check=False).returncode:
        pytest.skip("mounting a small disk takes rights that this user does not have")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def assert_one_line(code: int | None, err: str, start: str, why: str) -> None:
    """The job failed, and said what it should in one line."""
    assert code == 1
    (line,) = [line for line in err.splitlines() if "\tINFO " not in line]  # of Ray, when it connects to a cluster
    assert line.startswith(start)
    assert why in line


@pytest.fixture(scope="module")
def whole(cluster: Cluster, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a crawl of `folder` leaves where every write succeeds."""
    workspace = tmp_path_factory.mktemp("whole")
    code, _, err = cluster.run(folder, str(workspace))
    assert code == 0, err
    return contents(LocalStorage(str(workspace)))


def test_a_full_disk_is_one_line_and_no_half_shard(
    cluster: Cluster, folder: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    workspace = tmp_path / "small"
    workspace.mkdir()
    with small_disk(workspace, 64):
        code, _, err = cluster.run(folder, str(workspace))
        assert_one_line(code, err, f"error: cannot write {workspace}/c/crawls/", "No space left on device")
        left = contents(LocalStorage(str(workspace)))
        assert 1 < len(left) < len(whole)
        assert left.items() <= whole.items()
        assert not list(workspace.rglob("*.part")) and not list(workspace.rglob("crawl.json"))
        subprocess.run(["mount", "-o", "remount,size=4096k", str(workspace)], check=True)
        code, _, err = cluster.run(folder, str(workspace))
        assert code == 0, err
        assert contents(LocalStorage(str(workspace))) == whole


def test_a_refused_write_is_one_line_and_no_half_shard(
    cluster: Cluster, folder: Path, whole: dict[str, bytes], s3_server: S3Server, s3_bucket: str
) -> None:
    place = f"s3://{s3_bucket}/ws"

    def refuse(method: str, path: str) -> tuple[str, str] | None:
        refused = method == "PUT" and "/shards/shard-000002.tar" in path
        return ("403 Forbidden", "AccessDenied") if refused else None

    s3_server.refuse = refuse
    code, _, err = cluster.run(folder, place)
    assert_one_line(code, err, f"error: cannot write {place}/c/crawls/", "AccessDenied")
    left = set(open_storage(place).list(""))
    assert any(key.endswith("/plan.parquet") for key in left)
    assert not [key for key in left if "/shard-000002." in key or key.endswith("/crawl.json")]
    s3_server.refuse = lambda method, path: None
    code, _, err = cluster.run(folder, place)
    assert code == 0, err
    assert contents(open_storage(place)) == whole


def test_a_task_that_dies_in_every_attempt_is_one_line(
    cluster: Cluster, gate: Gate, urls: Path, tmp_path: Path
) -> None:
    gate.close(free=RECORDS - 1)
    job = cluster.start(urls, str(tmp_path), **{"ingest.records_per_shard": RECORDS})
    killed: set[int] = set()
    while job.poll() is None:
        if gate.site.running:
            for worker in cluster.head.workers():
                if worker not in killed:
                    killed.add(worker)
                    kill(worker)
        time.sleep(0.05)
    gate.open.set()
    code, _, err = ended(job)
    assert_one_line(code, err, "error: task 0 died in every attempt", "run the same command again")
    assert len(killed) == 4
    assert not list(tmp_path.rglob("shard-*"))
