"""Connection to Ray (the cluster that a job was submitted to, or a local Ray), and helpers to run tasks."""

from __future__ import annotations

import functools
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pipeline.config import JobConfig
from pipeline.errors import ClusterError, ConfigError, StorageError

Item = TypeVar("Item")

RETRY_PAUSE_S = 1.0
"""Pause in seconds before a failed task is retried."""


def on_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster to connect to; otherwise, Ray is started on this machine."""
    return bool(os.environ.get("RAY_ADDRESS"))


def _configure_ray() -> None:
    """Set the environment variables that Ray reads at its first import, and that its workers inherit."""
    # Otherwise, the first call to Ray would connect automatically to any Ray that is found on the machine.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not on_cluster():
        # Ray listens on all network interfaces; with a token, only processes that know it can connect.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # The local Ray has no API server. Without this address, Ray Train could find the API server of another Ray on
        # the machine, learn there that its controller is unknown, and release the resources of its workers.
        os.environ.setdefault("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
        # Training starts a few processes that only wait; on a machine with two CPUs, Ray would print warnings.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")


if "ray" not in sys.modules:
    _configure_ray()


@contextmanager
def ray_session() -> Iterator[None]:
    """Context of a job that disconnects from Ray at the end. It does not connect; see `connect_ray`."""
    try:
        yield
    finally:
        if ray := sys.modules.get("ray"):
            ray.shutdown()


def connect_ray() -> None:
    """Connect to the cluster that RAY_ADDRESS names (set for submitted jobs) or start a local Ray, once per process.

    On a cluster, no settings are passed to `ray.init`, because they must not contradict those of the cluster. Output of
    workers is not shown on the console, which is reserved for progress; it is in Ray's log folder and dashboard.

    Raises ClusterError if the cluster does not answer.
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
        raise ClusterError(f"RAY_ADDRESS {address}: no Ray cluster answers; start it, or unset the variable") from error


def check_resources_and_paths(config: JobConfig) -> None:
    """Raise ConfigError if this machine has too few CPUs, or if a job on a cluster has relative paths."""
    if on_cluster():
        for name, path in (*(("source", source) for source in config.sources), ("workspace", config.workspace)):
            if "://" not in path and not Path(path).is_absolute():
                raise ConfigError(f"{name} {path!r}: a submitted job runs in a temporary folder; give an absolute path")
        if (config.tracking_uri or "").startswith("sqlite:///") and not (config.tracking_uri or "")[10:].startswith(
            "/"
        ):
            raise ConfigError(
                f"tracking_uri {config.tracking_uri!r}: a submitted job runs in a temporary folder; give an absolute "
                "path with four slashes, such as sqlite:////shared/mlflow.db"
            )
        return
    cpus = os.cpu_count() or 1
    needed = config.clustering.workers * (config.clustering.cpus_per_worker or 1)
    if "cluster" in config.stages and needed > cpus:
        raise ConfigError(f"clustering.workers: {needed} CPUs are needed, but this machine has {cpus}; lower --workers")


_shared_slots: threading.Semaphore | None = None
"""Limit of running tasks over all threads, if several collections share the cluster with training."""


def leave_room_for_training() -> None:
    """From now on, limit the running tasks of all threads so that one CPU stays free for training.

    Ray gives a CPU that becomes free to the next waiting task. A group of workers that needs several CPUs at once could
    therefore have to wait until no task is left.
    """
    import ray

    global _shared_slots  # noqa: PLW0603 (one cluster per process)
    connect_ray()
    _shared_slots = threading.Semaphore(max(1, int(ray.cluster_resources().get("CPU", 1)) - 1))


def ray_task(work: Callable[..., Any]) -> Any:
    """Return `work` as a Ray task of one CPU, retried up to three times if storage, its worker or its node fails."""
    import ray

    @functools.wraps(work)
    def with_pause(*arguments: Any) -> Any:
        try:
            return work(*arguments)
        except StorageError:
            time.sleep(RETRY_PAUSE_S)
            raise

    return ray.remote(num_cpus=1, max_retries=3, retry_exceptions=[StorageError])(with_pause)


def run_bounded(submit: Callable[[Item], Any], items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
    """Run one Ray task per item and yield (item, result) pairs in the order in which the tasks finish.

    The number of submitted tasks is bounded by twice the number of CPUs of the cluster.

    Args:
        submit: function that starts the task of an item and returns its object reference.
        items: items, consumed lazily.

    Raises ClusterError if the worker or the node of a task dies in all attempts, and any exception of a task itself.
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
            # Wait for a slot only if no task of this thread is pending; otherwise wait for one of these tasks.
            while waiting is not None and len(pending) < bound and slots.acquire(blocking=not pending):
                pending[submit(waiting)] = waiting
                waiting = next(queue, None)
            done, _ = ray.wait(list(pending), num_returns=1)
            for reference in done:
                item = pending.pop(reference)
                slots.release()
                try:
                    result = ray.get(reference)
                except _worker_failures() as error:
                    reason = str(error).strip().partition("\n")[0]
                    raise ClusterError(
                        f"task {item} died in every attempt ({reason}); run the same command again"
                    ) from error
                yield item, result
    finally:
        if pending:
            slots.release(len(pending))


def _worker_failures() -> tuple[type[Exception], ...]:
    """Exceptions that Ray raises for a task whose worker or node died."""
    from ray import exceptions

    return (
        exceptions.WorkerCrashedError,
        exceptions.OutOfMemoryError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
    )
