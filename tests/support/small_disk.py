"""A small file system, for tests of full disks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(path: Path, kilobytes: int) -> Iterator[None]:
    """Mount a small separate file system at the folder `path`; skip the test if the user is not permitted to."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)], check=False).returncode:
        pytest.skip("this user is not permitted to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def enlarge(path: Path, kilobytes: int) -> None:
    """Give the file system at `path` another size."""
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(path)], check=True)
