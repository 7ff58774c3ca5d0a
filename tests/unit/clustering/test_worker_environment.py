"""The limits of glibc in the environment of workers: freed pictures are returned, or reused at once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.clustering.workers import WORKER_ENVIRONMENT

pytestmark = pytest.mark.slow

HOLES = """
import torch

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096


torch.ones(31 * 2**18)  # freed at once: by default glibc would keep smaller blocks from here on
before = resident()
blocks = [torch.ones(12 * 2**18) for _ in range(20)]
full = resident() - before
del blocks[::2]
print((resident() - before) / full)
"""

AGAIN = """
import resource, torch

def use_and_free():
    pictures = [torch.ones(3 * 2**18) for _ in range(8)]


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


counts = [faults()]
for _ in range(8):
    use_and_free()
    counts.append(faults())
print((counts[-1] - counts[-2]) / (counts[1] - counts[0]))
"""


def printed(program: str) -> float:
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | WORKER_ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(found.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory in /proc")
def test_holes_between_blocks_are_returned() -> None:
    assert printed(HOLES) == pytest.approx(0.5, abs=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="the limits are those of glibc")
def test_pictures_of_a_few_pairs_use_the_same_memory_again() -> None:
    assert printed(AGAIN) < 0.1
