"""One local Ray for all integration tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray of two CPUs on this machine."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()
