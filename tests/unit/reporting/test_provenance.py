from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.reporting import provenance

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
PRINT_COMMIT = "import provenance; print(provenance.commit())"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one commit, and a copy of the module that is not committed."""
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "first")
    shutil.copy(provenance.__file__, tmp_path)
    return tmp_path


def reported_commit(folder: Path, path: str | None = None) -> str:
    """Return the commit that the module in `folder` reports, with `path` as the PATH of its process."""
    environment = {**os.environ, "PATH": path if path is not None else os.environ["PATH"]}
    command = [sys.executable, "-c", PRINT_COMMIT]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_committed_code_reports_its_commit(checkout: Path) -> None:
    git(checkout, "add", "provenance.py")
    git(checkout, "commit", "--quiet", "--message", "second")
    assert reported_commit(checkout) == git(checkout, "rev-parse", "HEAD")


def test_uncommitted_code_reports_none(checkout: Path) -> None:
    assert reported_commit(checkout) == "None"


def test_without_git_none_is_reported(checkout: Path) -> None:
    git(checkout, "add", "provenance.py")
    git(checkout, "commit", "--quiet", "--message", "second")
    assert reported_commit(checkout, path="") == "None"
