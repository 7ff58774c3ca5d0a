"""What made a report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from pipeline.reporting.provenance import commit

PACKAGES = ("visual-trends", "torch", "ray", "mlflow", "pillow", "pyarrow")


def versions() -> dict[str, str | None]:
    """This project's commit, and the versions of Python and of the packages that matter, by name."""
    made_by = {"commit": commit(), "python": platform.python_version()}
    return {**made_by, **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str | None:
    """None where it is not installed, such as this package in a job that brings its own working directory."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
