"""How work over one shard becomes a Ray task."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from pipeline.errors import StorageError

RETRY_PAUSE_S = 1.0


def ray_task(work: Callable[..., Any]) -> Any:
    """`work` as a Ray task that is tried again after a pause where the machine was at fault."""
    import ray

    @functools.wraps(work)
    def with_pause(*arguments: Any) -> Any:
        try:
            return work(*arguments)
        except StorageError:
            time.sleep(RETRY_PAUSE_S)
            raise

    return ray.remote(num_cpus=1, max_retries=3, retry_exceptions=[StorageError])(with_pause)
