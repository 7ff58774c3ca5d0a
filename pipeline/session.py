"""One way to reach Ray: the cluster that a job was submitted to, or a local one."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import JobConfig
from pipeline.errors import ClusterError, ConfigError

Item = TypeVar("Item")


def on_cluster() -> bool:
    """Whether there is a cluster to connect to; if not, Ray is started on this machine."""
    return bool(os.environ.get("RAY_ADDRESS"))


def _configure_ray() -> None:
    """Ray reads its settings from the environment when it is first imported; its workers inherit them."""
    # Otherwise Ray connects by itself at the first call, to whichever Ray it finds on the machine.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not on_cluster():
        # Ray listens on all network interfaces; only a process that knows this token may use it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # This Ray has no API server. Left to itself, Ray Train would look for one, find that of another Ray on the
        # machine, learn there that its controller is unknown, and take its own workers' resources away.
        os.environ.setdefault("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
        # Training has a few processes that only wait. On two CPUs Ray would warn of them on the console.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")


if "ray" not in sys.modules:
    _configure_ray()


@contextmanager
def ray_session() -> Iterator[None]:
    """Disconnect from Ray at the end, if anything in between had to connect: a job with nothing to do never does."""
    try:
        yield
    finally:
        if ray := sys.modules.get("ray"):
            ray.shutdown()


def connect_ray() -> None:
    """Connect to the cluster named by RAY_ADDRESS (set for submitted jobs), or start a local one; once per process.

    A submitted job must not contradict its cluster's settings, so none are passed to `ray.init` there. The console
    belongs to the stages' progress; what workers print is in Ray's own log folder and dashboard.
    """
    import ray

    if ray.is_initialized():
        return
    if not on_cluster():
        ray.init("local", include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
        return
    try:
        ray.init(log_to_driver=False)
    except ConnectionError as error:
        address = os.environ["RAY_ADDRESS"]
        raise ClusterError(f"RAY_ADDRESS {address}: no Ray cluster answers there; start it, or unset it") from error


def check_place(config: JobConfig) -> None:
    """Raise ConfigError where the job cannot run on this machine, or cannot find its files on a cluster."""
    if on_cluster():
        for name, place in (*(("source", source) for source in config.sources), ("workspace", config.workspace)):
            if "://" not in place and not Path(place).is_absolute():
                raise ConfigError(
                    f"{name} {place!r}: a submitted job runs in a temporary folder; give an absolute path"
                )
        return
    cpus = os.cpu_count() or 1
    needed = config.clustering.workers * (config.clustering.cpus_per_worker or 1)
    if "cluster" in config.stages and needed > cpus:
        raise ConfigError(f"clustering.workers: {needed} CPUs are needed, this machine has {cpus}; lower --workers")


_shared_slots: threading.Semaphore | None = None
"""Of tasks in flight, where several collections share the cluster with training."""


def leave_room_for_training() -> None:
    """From now on the tasks of all threads together leave a CPU free.

    Ray gives a CPU that a task leaves to the next task that waits, and a group of workers that needs several at once
    may wait until no task is left.
    """
    import ray

    global _shared_slots  # noqa: PLW0603 (one cluster per process)
    connect_ray()
    _shared_slots = threading.Semaphore(max(1, int(ray.cluster_resources().get("CPU", 1)) - 1))


def run_bounded(submit: Callable[[Item], Any], items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
    """Run one Ray task per item, twice the cluster's CPUs at once, and yield (item, result) as they finish.

    Args:
        submit: starts the task of an item and returns its object reference.
        items: consumed lazily, so that a long list is never all in flight.

    Raises ClusterError where a task's process or node dies as often as Ray tries it, and what the task itself raises.
    """
    import ray

    connect_ray()
    bound = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    slots = _shared_slots or threading.Semaphore(bound)
    pending: dict[Any, Item] = {}
    queue = iter(items)
    waiting = next(queue, None)
    try:
        while waiting is not None or pending:
            # Only who has no task to wait for may wait for a slot.
            while waiting is not None and len(pending) < bound and slots.acquire(blocking=not pending):
                pending[submit(waiting)] = waiting
                waiting = next(queue, None)
            done, _ = ray.wait(list(pending), num_returns=1)
            for reference in done:
                item = pending.pop(reference)
                slots.release()
                try:
                    result = ray.get(reference)
                except _deaths() as error:
                    why = str(error).strip().partition("\n")[0]
                    raise ClusterError(
                        f"task {item} died in every attempt ({why}); run the same command again"
                    ) from error
                yield item, result
    finally:
        if pending:
            slots.release(len(pending))


def _deaths() -> tuple[type[Exception], ...]:
    """What Ray raises for a task that ended without a word of its own."""
    from ray import exceptions

    return (
        exceptions.WorkerCrashedError,
        exceptions.OutOfMemoryError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
    )
