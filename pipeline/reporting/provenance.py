"""The software that made a report: the Git commit of this project, and the versions of Python and of key packages."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("visual-trends", "torch", "ray", "mlflow", "pillow", "pyarrow")
"""Packages whose versions are recorded."""


def versions() -> dict[str, str | None]:
    """Return the Git commit of this project, and the versions of Python and of `PACKAGES`, by name."""
    project = {"commit": commit(), "python": platform.python_version()}
    return {**project, **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str | None:
    """Return the version of `package`; None if it is not installed, such as this project run from a checkout."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return the Git commit that is checked out; None if the code is not part of a checkout or Git is not installed."""
    folder = Path(__file__).parent
    # The second argument makes the command fail if the code is inside the checkout of another project.
    command = ["git", "-C", str(folder), "rev-parse", "HEAD", f"HEAD:./{Path(__file__).name}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.split()[0]
