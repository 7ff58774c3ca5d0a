"""Freed pictures go back to the system."""

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
blocks = [torch.ones(6 * 2**18) for _ in range(40)]
full = resident() - before
del blocks[::2]
print((resident() - before) / full)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory in /proc")
def test_holes_between_blocks_are_returned() -> None:
    found = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert float(found.stdout) == pytest.approx(0.5, abs=0.1)
