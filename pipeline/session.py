"""One way to reach Ray: the cluster that a job was submitted to, or a local one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the cluster named by RAY_ADDRESS (set for submitted jobs), or start a local one; then disconnect.

    A submitted job must not contradict its cluster's settings, so none are passed to `ray.init` there. The console
    belongs to the stages' progress; what workers print is in Ray's own log folder and dashboard.
    """
    # Ray would otherwise guess the authentication mode from a file in the home folder, and guess differently
    # for `ray start` and for `ray.init`.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
    else:
        # This Ray has no API server. Left to itself, Ray Train would look for one, find that of another Ray on the
        # machine, learn there that its controller is unknown, and take its own workers' resources away.
        os.environ.setdefault("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
        ray.init("local", include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def run_bounded(
    submit: Callable[[Item], Any], items: Iterable[Item], in_flight: int | None = None
) -> Iterator[tuple[Item, Any]]:
    """Run one Ray task per item, `in_flight` at once, and yield (item, result) as they finish.

    Args:
        submit: starts the task of an item and returns its object reference.
        items: consumed lazily, so that a long list is never all in flight.
        in_flight: bound on running tasks; twice the cluster's CPUs by default.
    """
    import ray

    bound = in_flight or max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    pending: dict[Any, Item] = {}
    queue = iter(items)
    while True:
        while len(pending) < bound and (item := next(queue, None)) is not None:
            pending[submit(item)] = item
        if not pending:
            return
        done, _ = ray.wait(list(pending), num_returns=1)
        for reference in done:
            yield pending.pop(reference), ray.get(reference)
