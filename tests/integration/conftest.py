"""One local Ray for all integration tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import pipeline.session  # noqa: F401 (configures Ray, which is imported next)
from pipeline.config import TRACKING_VARIABLE


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray of two CPUs on this machine."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def mlflow_variable_removed() -> Iterator[None]:
    """Remove the environment variable that MLflow sets in this process: jobs that tests start would honour it."""
    yield
    os.environ.pop(TRACKING_VARIABLE, None)
