"""Memory and processor time of a process and all that descend from it, from Linux' /proc."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

EVERY_S = 0.25
"""Between two readings of the processor time."""
MEMORY_EVERY = 4
"""Readings of the processor time for one of the memory, which would take a tenth of a core if it were as frequent."""
RAY_SERVICES = ("/ray/core/src/", "/ray/dashboard/", "/ray/autoscaler/", "log_monitor.py", "Agent", "ray::IDLE")
"""In the command lines of what Ray runs for itself; workers without work are its reserve."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Watch:
    """Samples the tree below process `root` while the context is open.

    Attributes:
        peak_bytes: largest sum of the processes' proportional set sizes: a page that several share counts once.
        peak_bytes_without_ray: the same without the services of Ray, which a cluster's nodes run anyway.
        cpu_s: user and system time of all processes, as far as each was seen last, at the times in it
            (`time.monotonic`).
    """

    def __init__(self, root: int) -> None:
        self.peak_bytes = 0
        self.peak_bytes_without_ray = 0
        self.cpu_s: list[tuple[float, float]] = [(time.monotonic(), 0.0)]
        self._root = root
        self._ticks: dict[int, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def cpu_between(self, start: float, end: float) -> float:
        """Processor time in s that was used between two times."""
        times, used = zip(*self.cpu_s, strict=True)
        before, after = np.interp([start, end], times, used)
        return float(after - before)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def kill(self) -> None:
        """End the tree: what Ray starts is not in the process group of who started it."""
        for pid in _tree(self._root):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _sample(self) -> None:
        while not self._ended.wait(EVERY_S):
            tree = _tree(self._root)
            self._ticks |= tree
            self.cpu_s.append((time.monotonic(), sum(self._ticks.values()) / TICKS_PER_S))
            if len(self.cpu_s) % MEMORY_EVERY == 0:
                sizes = {pid: _pss(pid) for pid in tree}
                self.peak_bytes = max(self.peak_bytes, sum(sizes.values()))
                work = sum(size for pid, size in sizes.items() if not _serves_ray(pid))
                self.peak_bytes_without_ray = max(self.peak_bytes_without_ray, work)


def _tree(root: int) -> dict[int, int]:
    """Processor time in ticks of `root` and its descendants, by process id."""
    parents, ticks = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
                ticks[int(entry.name)] = int(fields[11]) + int(fields[12])
    found = {root} & ticks.keys()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: ticks[pid] for pid in found}


def _pss(pid: int) -> int:
    """Proportional set size of process `pid` in bytes; 0 where it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def _serves_ray(pid: int) -> bool:
    """Whether process `pid` is one of Ray's own."""
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        return any(service in command for service in RAY_SERVICES)
    return False
