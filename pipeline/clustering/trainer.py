"""The Ray Train side: groups of workers that train one trial after the other with DDP.

Starting a group takes far longer than a small trial needs, so a group works through trials for as long as any wait,
and as many groups work at once as the cluster has room for. The truth lies in the workspace, not in Ray Train's own
state: a finished trial has its trial.json, an unfinished one its checkpoint. A group that Ray restarts after a death,
or a job that is submitted again, reads them and goes on.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.clustering.data.image_store import ImageStore, kept_bytes, open_images
from pipeline.clustering.data.images import ImageSet
from pipeline.clustering.heap import return_large_blocks
from pipeline.clustering.patience import write_patiently
from pipeline.clustering.training import TrialTraining
from pipeline.clustering.trial import loss_at
from pipeline.clustering.trial_queue import TrialQueue, View, Work
from pipeline.clustering.workers import connected
from pipeline.config import ClusteringConfig
from pipeline.console import Progress, say
from pipeline.errors import ClusteringError, PipelineError, user_error
from pipeline.session import connect_ray
from pipeline.storage import write_json

POLL_S = 1.0
IDLE_S = 5.0
"""How long a group that paused a trial waits for more: starting a group takes far longer."""
SILENCE_S = 90.0
"""Workers that have not been heard of for so long are probably waiting for resources."""
STORE_RETRIES = 5
"""Of a question to the image store that dies with it."""
SHOWN_TRIALS = 3
"""Running trials that the progress line names."""


@dataclass(frozen=True)
class GroupPlan:
    """What a group of workers is, and how many of them work at once."""

    workers: int
    threads: int
    """CPU threads of each worker."""
    gpus: float
    """Of each worker; 0 to train on CPUs."""
    most: int
    """Groups at once."""

    @property
    def resources(self) -> dict[str, float]:
        """Of each worker, as Ray counts them."""
        return {"CPU": float(self.threads), **({"GPU": self.gpus} if self.gpus else {})}


def plan_groups(config: ClusteringConfig, trials: int) -> GroupPlan:
    """As many groups as the cluster has room for, and no more than `trials`.

    On a single machine its CPUs are shared among them; on a cluster a worker has one, unless `cpus_per_worker` says
    otherwise. Raises ClusteringError where not even one group fits: it would wait for ever.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = config.gpus_per_worker if _choose_gpu(config) else 0.0
    threads = config.cpus_per_worker or 1
    if config.cpus_per_worker is None and len(nodes) == 1 and not gpus:
        cpus = int(nodes[0].get("CPU", 1))
        threads = max(1, cpus // (config.workers * max(1, min(trials, cpus // config.workers))))
    plan = GroupPlan(config.workers, threads, gpus, 1)
    # A worker does not span nodes.
    places = sum(min(_places(node.get(name, 0), amount) for name, amount in plan.resources.items()) for node in nodes)
    if places < config.workers:
        worker = " and ".join(f"{amount:g} {name}" for name, amount in plan.resources.items())
        raise ClusteringError(
            f"{config.workers} workers of {worker} each: the cluster's {len(nodes)} node(s) have room for {places}; "
            "lower --workers or clustering.cpus_per_worker, or add nodes"
        )
    return GroupPlan(config.workers, threads, gpus, max(1, min(trials, places // config.workers)))


def _places(available: float, amount: float) -> int:
    """How many times `amount` of something fits; a part of a GPU is part of one GPU."""
    return int(available) * int(1 / amount) if amount < 1 else int(available / amount)


def _choose_gpu(config: ClusteringConfig) -> bool:
    """Whether workers train on GPUs."""
    if config.device != "auto":
        return config.device == "cuda"
    gpus, needed = ray.cluster_resources().get("GPU", 0), config.workers * config.gpus_per_worker
    if 0 < gpus < needed:
        say("cluster", f"{config.workers} workers need {needed:g} GPUs, the cluster has {gpus:g}: training on CPUs")
    return bool(gpus) and gpus >= needed


class TrainingPool:
    """Trains trials of any number of runs; a context manager, and safe to use from several threads.

    Groups are started when trials wait, and end when none does, so that what they held is free for other work.

    Args:
        config: says what a group is; `Work` has its own configuration of what to learn.
        trials: that are expected, at the most: a single machine is shared among so many.
    """

    def __init__(self, config: ClusteringConfig, trials: int) -> None:
        connect_ray()
        self._config = config
        self._plan = plan_groups(config, trials)
        # Beside the driver: with it the job ends anyway, and any other node may be lost.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        beside = {"num_cpus": 0, "scheduling_strategy": here}
        self._queue = ray.remote(TrialQueue).options(**beside).remote()
        store = ray.remote(ImageStore).options(**beside, max_restarts=-1, max_task_retries=STORE_RETRIES)
        self._store = store.remote(kept_bytes())
        self._ends: dict[str, Future[None]] = {}
        self._groups: dict[Future[None], str] = {}
        self._threads = ThreadPoolExecutor(self._plan.most, "group")
        self._started = 0
        self._fruitless = 0
        self._fatal: Exception | None = None
        self._ending = threading.Lock()
        """Of who waits for trials against who ends all waiting."""
        self._view = _Console()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._manage, daemon=True)
        self._thread.start()

    def __enter__(self) -> TrainingPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        self._end_all(ClusteringError("the job ended before the trial did"))
        # A group that still starts ends by itself: no trial waits. After an error, its threads end with Ray.
        self._threads.shutdown(wait=False, cancel_futures=True)

    def train(self, works: Sequence[Work]) -> None:
        """Train `works` and leave a checkpoint and a trial.json of each in its workspace.

        Raises the ClusteringError of the first trial that cannot be trained, when all others are done.
        """
        with self._ending:
            if self._fatal is not None:
                raise self._fatal
            ends = [self._ends.setdefault(work.name, Future()) for work in works]
        ray.get(self._queue.add.remote(list(works)))
        errors = [end.exception() for end in ends]
        for work in works:
            del self._ends[work.name]
        for error in errors:
            if error is not None:
                raise error

    def _manage(self) -> None:
        try:
            while not self._stop.wait(POLL_S):
                self._release_the_ended()
                view = ray.get(self._queue.view.remote())
                self._view.show(view)
                for name, error in view.ended.items():
                    self._fruitless = 0
                    self._end(name, error)
                if len(self._groups) < min(self._plan.most, view.waiting + len(view.running)) and view.waiting:
                    self._start_group()
        except Exception as error:  # whoever waits for a trial must not wait for ever
            self._end_all(error)
        finally:
            self._view.close()

    def _end_all(self, error: Exception) -> None:
        """End all waiting, from now on, too."""
        with self._ending:
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
        self._started += 1
        name = f"group-{self._started}"
        group = self._threads.submit(fit_group, name, self._plan, self._config, self._queue, self._store)
        self._groups[group] = name

    def _release_the_ended(self) -> None:
        """Take note of the groups that ended; one that broke leaves its trial to others."""
        for group in [group for group in self._groups if group.done()]:
            name = self._groups.pop(group)
            had_a_trial = ray.get(self._queue.release.remote(name))
            error = group.exception()
            # A trial that is lost is counted by itself, and room for a group may come.
            if error is None or had_a_trial or _was_without_room(error):
                continue
            self._fruitless += 1
            if self._fruitless > self._config.max_failures and not self._groups:
                raise ClusteringError(
                    f"{self._fruitless} groups of workers ended before they had a trial: "
                    f"{' '.join(str(error).split())[-300:]}"
                ) from error


def _was_without_room(error: BaseException) -> bool:
    """Whether a group of workers was given up since the cluster had no room for it in time."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", error.__cause__), WorkerGroupStartupTimeoutError)


def fit_group(name: str, plan: GroupPlan, config: ClusteringConfig, queue: Any, store: Any) -> None:
    """Keep one group of workers going until no trial waits; `config` says how much it may fail."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    with tempfile.TemporaryDirectory(prefix="ray-train-") as folder:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "group": name,
                "plan": plan,
                "queue": queue,
                "store": store,
                "timeout_s": config.collective_timeout_s,
            },
            scaling_config=ScalingConfig(
                num_workers=plan.workers, use_gpu=bool(plan.gpus), resources_per_worker=plan.resources
            ),
            torch_config=TorchConfig(backend="nccl" if plan.gpus else "gloo", timeout_s=config.collective_timeout_s),
            run_config=RunConfig(
                name=name,
                storage_path=folder,
                failure_config=FailureConfig(max_failures=config.max_failures, controller_failure_limit=0),
            ),
        )
        trainer.fit()


def train_worker(loop_config: dict[str, Any]) -> None:
    """Body of one worker: whatever trial its group is given, until none waits."""
    torch.set_num_threads(loop_config["plan"].threads)
    return_large_blocks()
    with connected(loop_config["timeout_s"]):
        _train_what_comes(loop_config["group"], loop_config["queue"], loop_config["store"])


def _train_what_comes(group: str, queue: Any, store: Any) -> None:
    from ray.train.collective import broadcast_from_rank_zero
    from ray.train.torch import get_device

    first = ray.train.get_context().get_world_rank() == 0
    paused = False
    images: ImageSet | None = None
    of: tuple[str, list[str]] = ("", [])
    while True:
        work: Work | None = broadcast_from_rank_zero(
            _next_work(queue, group, IDLE_S if paused else 0.0) if first else None
        )
        if work is None:
            return
        paused = work.until is not None
        try:
            if images is None or of != (work.storage.root, work.shard_keys):
                images, of = None, (work.storage.root, work.shard_keys)  # the memory of those before is needed
                memory = int(work.config.image_memory_gb * 2**30)
                images = open_images(store, work.storage, work.shard_keys, work.decoded_bytes, memory)
            _train(work, images, get_device(), group, queue if first else None)
        except ClusteringError as error:  # on all workers alike
            if first:
                ray.get(queue.give_up.remote(group, user_error(error) or error))
        except PipelineError as error:  # on this one, perhaps: the group starts again, as far as it may
            # As it was raised: Ray takes its own kind of error for an argument that could not be computed.
            ray.get(queue.trouble.remote(group, user_error(error) or error))
            raise


def _next_work(queue: Any, group: str, patience_s: float) -> Work | None:
    """The next trial for `group`; None when none has come for so long, so that others can have its resources."""
    deadline = time.monotonic() + patience_s
    while True:
        work: Work | None = ray.get(queue.take.remote(group))
        if work is not None or time.monotonic() > deadline:
            return work
        time.sleep(POLL_S)


def _train(work: Work, images: ImageSet, device: torch.device, group: str, queue: Any) -> None:
    """Train one trial; `queue` is told how it goes, by the worker that has it."""

    def note(line: str) -> None:
        if queue is not None:
            queue.note.remote(group, line)

    keys = work.paths.checkpoint(work.trial.name), work.paths.best(work.trial.name)
    training = TrialTraining(work.config, work.trial, images, work.storage, *keys, device, work.earlier, note)
    if queue is None:
        training.run(until=work.until)
        return
    ray.get(queue.begin.remote(group, training.origin))
    result = training.run(lambda window: queue.tell.remote(group, window), work.until)
    key = work.paths.trial_marker(work.trial.name)
    document = result.to_json()
    if work.until is not None and not training.curriculum.done:
        key = work.paths.rung(work.trial.name, work.until)
        document = {"iteration": result.iterations, "loss": loss_at(result.history, work.until)}
    write_patiently(lambda: write_json(work.storage, key, document), work.storage.uri(key), note)
    ray.get(queue.finish.remote(group, result.loss, result.image_passes, result.seconds))


class _Console:
    """Shows the views of a queue: a line per event, and one progress line for all trials that run."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._iterations: dict[str, int] = {}
        self._quiet_for = 0.0

    def show(self, view: View) -> None:
        self._quiet_for = 0.0 if view.running or not view.waiting else self._quiet_for + POLL_S
        if self._quiet_for == SILENCE_S:
            say("cluster", "still waiting for workers: other jobs may hold the cluster's CPUs or GPUs")
        if view.lines:
            self.close()
        for line in view.lines:
            say("cluster", line)
        windows = {name: window for name, window in view.running.items() if window is not None}
        advanced = 0
        for name, window in windows.items():
            before = self._iterations.get(name, window.iteration)
            advanced += max(0, window.iteration - before)
            self._iterations[name] = window.iteration
        if not advanced:
            return
        done = sum(window.iteration for window in windows.values())
        total = done + sum(window.iterations_left for window in windows.values())
        if self._bar is None:
            self._bar = Progress("cluster", total, "it", done - advanced)
        self._bar.set_total(total)
        shown = [
            f"{window.trial.name} loss {window.loss:.6g} {'+'.join(window.modules) or 'identity'}"
            for window in list(windows.values())[:SHOWN_TRIALS]
        ]
        shown += [f"{len(windows) - SHOWN_TRIALS} more"] if len(windows) > SHOWN_TRIALS else []
        shown += [f"{view.waiting} waiting"] if view.waiting else []
        self._bar.advance(advanced, ", ".join(shown))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
