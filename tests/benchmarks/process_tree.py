"""Memory and processor time of a process and all its descendants, from Linux' /proc."""

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
"""Time between two readings of the processor time."""
MEMORY_EVERY = 4
"""Number of readings of the processor time per reading of the memory, which would take a tenth of a core every time."""
RAY_SERVICES = ("/ray/core/src/", "/ray/dashboard/", "/ray/autoscaler/", "log_monitor.py", "Agent", "ray::IDLE")
"""Parts of the command lines of Ray's services; idle workers, which Ray keeps in reserve, count as services."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Watch:
    """Context manager that samples process `root` and its descendants.

    Attributes:
        peak_bytes: largest sum of the proportional set sizes of the processes: a shared page counts once.
        peak_bytes_without_ray: the same without Ray's services, which run on every node of a cluster anyway.
        cpu_s: pairs of a time (`time.monotonic`) and the user and system time of all processes until then, in seconds;
            for processes that have ended, the last reading.
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
        """Return the processor time in seconds that was used between two times (`time.monotonic`)."""
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
        """Kill all processes; those that Ray starts are not in the process group of `root`."""
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
    """Return the processor time in ticks of `root` and its descendants, by process id."""
    parents, ticks = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # the process has ended
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
                ticks[int(entry.name)] = int(fields[11]) + int(fields[12])
    found = {root} & ticks.keys()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: ticks[pid] for pid in found}


def _pss(pid: int) -> int:
    """Return the proportional set size of process `pid` in bytes; 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def _serves_ray(pid: int) -> bool:
    """Whether process `pid` is a service of Ray."""
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        return any(service in command for service in RAY_SERVICES)
    return False
