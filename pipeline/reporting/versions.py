"""What made a report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("visual-trends", "torch", "ray", "mlflow", "pillow", "pyarrow")


def versions() -> dict[str, str | None]:
    """Of Python and of the packages whose versions matter, by name."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str | None:
    """None where it is not installed, such as this package in a job that brings its own working directory."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
