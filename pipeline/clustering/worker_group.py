"""The workers' side of training: a Ray Train group of DDP workers that trains the trials that the queue hands out."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from pipeline.clustering.data.image_store import open_images
from pipeline.clustering.data.images import ImageSet
from pipeline.clustering.group_plan import POLL_S, GroupPlan
from pipeline.clustering.storage_retries import write_with_retries
from pipeline.clustering.training import TrialTraining
from pipeline.clustering.trial import TrialTask, loss_at
from pipeline.clustering.workers import WORKER_ENVIRONMENT
from pipeline.config import ClusteringConfig
from pipeline.errors import ClusteringError, PipelineError, user_error
from pipeline.storage import write_json

IDLE_S = 5.0
"""Time for which a group that paused a trial waits for another one, since starting a group takes far longer."""


def run_group(name: str, plan: GroupPlan, config: ClusteringConfig, queue: Any, store: Any) -> None:
    """Run a group of workers until no trial waits.

    Args:
        name: name of the group in the queue and in Ray's logs.
        plan: number of workers and their resources.
        config: limits on the time that workers wait for each other, and on the failures of the group.
        queue: handle of the job's `TrialQueue`.
        store: handle of the job's `ImageStore`.
    """
    with tempfile.TemporaryDirectory(prefix="ray-train-") as folder:
        TorchTrainer(
            train_worker,
            train_loop_config={"group": name, "threads": plan.threads, "queue": queue, "store": store},
            scaling_config=ScalingConfig(
                num_workers=plan.workers, use_gpu=bool(plan.gpus), resources_per_worker=plan.resources
            ),
            torch_config=TorchConfig(backend="nccl" if plan.gpus else "gloo", timeout_s=config.collective_timeout_s),
            run_config=RunConfig(
                name=name,
                storage_path=folder,
                failure_config=FailureConfig(max_failures=config.max_failures, controller_failure_limit=0),
                worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
            ),
        ).fit()


def train_worker(loop_config: dict[str, Any]) -> None:
    """Run one worker: train the trials that its group takes from the queue, until no trial waits."""
    torch.set_num_threads(loop_config["threads"])
    group, queue, store = loop_config["group"], loop_config["queue"], loop_config["store"]
    first = ray.train.get_context().get_world_rank() == 0
    patience_s = 0.0
    images: ImageSet | None = None
    images_of: tuple[str, list[str]] = ("", [])
    while True:
        task: TrialTask | None = broadcast_from_rank_zero(_next_task(queue, group, patience_s) if first else None)
        if task is None:
            return
        patience_s = 0.0 if task.until is None else IDLE_S
        try:
            if images is None or images_of != (task.storage.root, task.shard_keys):
                images, images_of = None, (task.storage.root, task.shard_keys)  # frees the previous images first
                images = open_images(store, task)
            _train(task, images, group, queue if first else None)
        except ClusteringError as error:  # the same on all workers
            if first:
                ray.get(queue.give_up.remote(group, user_error(error) or error))
        except PipelineError as error:  # possibly on this worker only: the group restarts, up to max_failures times
            # The original error is sent: Ray would take its own wrapper for an argument that could not be computed.
            ray.get(queue.report_failure.remote(group, user_error(error) or error))
            raise


def _next_task(queue: Any, group: str, patience_s: float) -> TrialTask | None:
    """Return the next trial for `group`; None if none arrives within `patience_s`, to release the resources."""
    deadline = time.monotonic() + patience_s
    while True:
        task: TrialTask | None = ray.get(queue.take.remote(group))
        if task is not None or time.monotonic() > deadline:
            return task
        time.sleep(POLL_S)


def _train(task: TrialTask, images: ImageSet, group: str, queue: Any) -> None:
    """Train one trial; only the first worker has the `queue`, and reports to it."""
    if queue is None:
        TrialTraining(task, images, get_device()).run()
        return
    log = lambda line: queue.log.remote(group, line)  # noqa: E731
    training = TrialTraining(task, images, get_device(), log)
    ray.get(queue.begin.remote(group, training.origin))
    result = training.run(lambda progress: queue.report.remote(group, progress))
    key, document = task.marker_key, result.to_json()
    if task.until is not None and not training.curriculum.done:
        key = task.paths.rung(task.trial.name, task.until)
        document = {"iteration": result.iterations, "loss": loss_at(result.history, task.until)}
    write_with_retries(lambda: write_json(task.storage, key, document), task.storage.uri(key), log)
    ray.get(queue.finish.remote(group, result.loss, result.image_passes, result.seconds))
