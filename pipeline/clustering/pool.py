"""The driver's side of training: worker groups are started while trials wait, and end when no trial waits.

Starting a group takes far longer than training a small trial, so a group trains one trial after the other, and as many
groups work at once as the cluster has room for. The workspace is the source of truth, not Ray Train's own state: a
finished trial has its trial.json, an unfinished one its checkpoint. A group that Ray restarts after a death, and a job
that is submitted again, read them and continue.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pipeline.clustering.group_plan import POLL_S, plan_groups
from pipeline.clustering.trial import TrialTask
from pipeline.clustering.trial_console import TrialConsole
from pipeline.clustering.trial_queue import QueueUpdate, TrialQueue
from pipeline.config import ClusteringConfig
from pipeline.errors import ClusteringError, PipelineError
from pipeline.session import connect_ray

STORE_RETRIES = 5
"""Number of times that a request to the image store is repeated after the store has died."""


class TrainingPool:
    """Trains trials of any number of runs; a context manager, and safe to use from several threads.

    Nothing is started before the first trial arrives, so a job with nothing to train does not import torch.

    Args:
        config: resources of a worker group; everything else about training comes from the configuration of each task.
        trials: maximum number of trials of the job, which determines how a single machine is divided.
    """

    def __init__(self, config: ClusteringConfig, trials: int) -> None:
        self._config = config
        self._trials = trials
        self._lock = threading.Lock()
        """Protects the start of the pool and the registration and failure of all waiting callers."""
        self._ends: dict[str, Future[None]] = {}
        """Ends of the trials that callers wait for, by the names of the trials."""
        self._groups: dict[Future[None], str] = {}
        self._started_groups = 0
        self._groups_without_trial = 0
        self._fatal: Exception | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> TrainingPool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join(timeout=10)
        self._end_all(ClusteringError("the job ended before the trial did"))
        # A group that is still starting ends on its own, since no trial waits. After an error, threads end with Ray.
        self._threads.shutdown(wait=False, cancel_futures=True)

    def train(self, tasks: Sequence[TrialTask]) -> None:
        """Train `tasks`; return when the checkpoint and the trial.json of each are in its workspace.

        When all of them have ended, the error of the first one that failed is raised.
        """
        import ray

        with self._lock:
            if self._fatal is not None:
                raise self._fatal
            if self._thread is None:
                self._start()
            ends = [self._ends.setdefault(task.name, Future()) for task in tasks]
        ray.get(self._queue.add.remote(list(tasks)))
        errors = [end.exception() for end in ends]
        for task in tasks:
            del self._ends[task.name]
        for error in errors:
            if error is not None:
                raise error

    def _start(self) -> None:
        """Start the queue, the image store, and the thread that manages the groups."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from pipeline.clustering.data.image_store import ImageStore, kept_bytes

        connect_ray()
        self._plan = plan_groups(self._config, self._trials)
        # The actors run on the driver's node: without it the job ends anyway, and any other node may be lost.
        on_this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": on_this_node}
        self._queue = ray.remote(TrialQueue).options(**options).remote()
        store = ray.remote(ImageStore).options(**options, max_restarts=-1, max_task_retries=STORE_RETRIES)
        self._store = store.remote(kept_bytes())
        self._threads = ThreadPoolExecutor(self._plan.groups, "group")
        self._thread = threading.Thread(target=self._manage, daemon=True)
        self._thread.start()

    def _manage(self) -> None:
        """Start groups, pass the ends of trials to their callers, and update the console until the pool is closed."""
        import ray

        console = TrialConsole(POLL_S)
        try:
            while not self._stop.wait(POLL_S):
                self._release_ended_groups()
                update: QueueUpdate = ray.get(self._queue.update.remote())
                console.show(update)
                for name, error in update.ended.items():
                    self._groups_without_trial = 0
                    self._end(name, error)
                if len(self._groups) < min(self._plan.groups, update.waiting + len(update.running)) and update.waiting:
                    self._start_group()
        except Exception as error:  # callers that wait for a trial must not wait endlessly
            self._end_all(error)
        finally:
            console.close()

    def _end_all(self, error: Exception) -> None:
        """Raise `error` in all callers that wait for trials, and in all later ones."""
        with self._lock:
            self._fatal = self._fatal or error
            for end in list(self._ends.values()):
                if not end.done():
                    end.set_exception(error)

    def _end(self, name: str, error: PipelineError | None) -> None:
        end = self._ends[name]
        if error is None:
            end.set_result(None)
        else:
            end.set_exception(error)

    def _start_group(self) -> None:
        from pipeline.clustering.worker_group import run_group

        self._started_groups += 1
        name = f"group-{self._started_groups}"
        group = self._threads.submit(run_group, name, self._plan, self._config, self._queue, self._store)
        self._groups[group] = name

    def _release_ended_groups(self) -> None:
        """Remove the groups that have ended; the trial of a group that failed returns to the queue."""
        import ray

        for group in [group for group in self._groups if group.done()]:
            name = self._groups.pop(group)
            had_a_trial = ray.get(self._queue.release.remote(name))
            error = group.exception()
            # The queue counts lost trials, and the cluster may have room for a group later.
            if error is None or had_a_trial or _found_no_room(error):
                continue
            self._groups_without_trial += 1
            if self._groups_without_trial > self._config.max_failures and not self._groups:
                raise ClusteringError(
                    f"{self._groups_without_trial} worker groups ended before they took a trial: "
                    f"{' '.join(str(error).split())[-300:]}"
                ) from error


def _found_no_room(error: BaseException) -> bool:
    """Whether Ray Train gave up a worker group because the cluster had no room for it in time."""
    # Ray exports no name for this error; pyproject.toml bounds its version for that reason.
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", error.__cause__), WorkerGroupStartupTimeoutError)
