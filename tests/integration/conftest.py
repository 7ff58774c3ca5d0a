"""One local Ray for all integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import pipeline.session  # noqa: F401 (configures Ray, which is imported next)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray of two CPUs on this machine."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
