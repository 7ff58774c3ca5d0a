"""Real Ray clusters of one or several nodes on this machine, whose processes tests can kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.s3_server import CREDENTIALS

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120
"""Maximum time in seconds to wait for a process or a state."""
ALIVE = """
import sys, time
import ray
ray.init()
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    time.sleep(0.1)
"""
"""Script that waits until the number of live nodes given as its argument is reached."""


def processes_of(mark: str) -> dict[int, str]:
    """Return the command lines, by process id, of the raylet with `mark` in its environment and of its descendants."""
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
        except OSError:  # the process has just ended
            continue
    while below := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= below
    return {pid: commands[pid] for pid in found if pid in commands}


@dataclass
class Node:
    """A node of a cluster on this machine: the process `ray start` and all processes that it started."""

    mark: str
    starter: subprocess.Popen[bytes]

    def workers(self, prefix: str) -> set[int]:
        """Return the ids of the processes whose name begins with `prefix`, such as ``ray::build_shard``."""
        return {pid for pid, command in processes_of(self.mark).items() if command.startswith(prefix)}

    def kill(self) -> None:
        """Kill all processes of the node at once, as in a power failure."""
        for pid in [*processes_of(self.mark), self.starter.pid]:
            kill(pid)
        self.starter.wait(timeout=PATIENCE_S)

    def stop(self) -> None:
        """Stop the node in the regular way."""
        self.starter.terminate()
        self.starter.wait(timeout=PATIENCE_S)


def kill(pid: int) -> None:
    """Kill the process `pid` if it still exists."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def start_node(*options: str, s3: str) -> Node:
    """Start a node with the `options` of `ray start`, and the S3 endpoint `s3` in its environment."""
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
    """Wait until `holds` returns true; fail after `PATIENCE_S` seconds."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@dataclass
class Cluster:
    """A cluster of one node, to which further nodes can be added, and an S3 endpoint for its jobs."""

    address: str
    head: Node
    s3: str

    @contextmanager
    def another_node(self, cpus: int = 2) -> Iterator[Node]:
        """Context with a further node, which is killed at the end."""
        node = start_node(f"--address={self.address}", f"--num-cpus={cpus}", s3=self.s3)
        try:
            yield node
        finally:
            node.kill()

    def wait_for_nodes(self, n: int) -> None:
        """Wait until the cluster has `n` nodes; a node joins some time after it has been started."""
        code, _, err = ended(self.start("-c", ALIVE, str(n)))
        assert code == 0, err

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a job of this cluster: a Python command in the root of the project."""
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "disabled"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def ended(job: subprocess.Popen[str], patience_s: float = PATIENCE_S) -> tuple[int | None, str, str]:
    """Wait for `job` to end; return its exit code, standard output and standard error."""
    out, err = job.communicate(timeout=patience_s)
    return job.returncode, out, err


@contextmanager
def cluster_of_one(s3_endpoint: str, cpus: int = 2) -> Iterator[Cluster]:
    """Context with a cluster of one node with `cpus` CPUs, started by `ray start`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--head", f"--port={port}", f"--num-cpus={cpus}", "--include-dashboard=false")
    head = start_node(*options, s3=s3_endpoint)
    try:
        yield Cluster(f"127.0.0.1:{port}", head, s3_endpoint)
    finally:
        head.stop()
