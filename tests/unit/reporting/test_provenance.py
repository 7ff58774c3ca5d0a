from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.reporting import provenance

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
ASK = "import provenance; print(provenance.commit())"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one commit, and the module in it that belongs to no commit."""
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "first")
    shutil.copy(provenance.__file__, tmp_path)
    return tmp_path


def found(folder: Path, path: str | None = None) -> str:
    environment = {**os.environ, "PATH": path if path is not None else os.environ["PATH"]}
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_code_of_a_checkout_has_its_commit(checkout: Path) -> None:
    git(checkout, "add", "provenance.py")
    git(checkout, "commit", "--quiet", "--message", "second")
    assert found(checkout) == git(checkout, "rev-parse", "HEAD")


def test_code_that_only_lies_in_a_checkout_has_none(checkout: Path) -> None:
    assert found(checkout) == "None"


def test_without_git_there_is_none(checkout: Path) -> None:
    git(checkout, "add", "provenance.py")
    git(checkout, "commit", "--quiet", "--message", "second")
    assert found(checkout, path="") == "None"
