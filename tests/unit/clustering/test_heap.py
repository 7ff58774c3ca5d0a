"""Freed pictures go back to the system, those that are needed again at once do not."""

import subprocess
import sys

import pytest

HOLES = """
import sys, torch
from pipeline.clustering.heap import return_large_blocks

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096


return_large_blocks()
torch.ones(31 * 2**18)  # freed at once: from here on glibc would keep what is smaller
before = resident()
blocks = [torch.ones(12 * 2**18) for _ in range(20)]
full = resident() - before
del blocks[::2]
print((resident() - before) / full)
"""

AGAIN = """
import resource, torch
from pipeline.clustering.heap import return_large_blocks

def use_and_free():
    pictures = [torch.ones(3 * 2**18) for _ in range(8)]


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


return_large_blocks()
counts = [faults()]
for _ in range(8):
    use_and_free()
    counts.append(faults())
print((counts[-1] - counts[-2]) / (counts[1] - counts[0]))
"""


def printed(program: str) -> float:
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(found.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory in /proc")
def test_holes_between_blocks_are_returned() -> None:
    assert printed(HOLES) == pytest.approx(0.5, abs=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_pictures_of_a_few_pairs_take_the_same_memory_again() -> None:
    assert printed(AGAIN) < 0.1
