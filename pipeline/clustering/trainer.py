"""The Ray Train side: a group of workers that trains one trial after the other with DDP.

Starting a worker group takes far longer than a small trial needs, so one group works through all trials. The truth
lies in the workspace, not in Ray Train's own state: a finished trial has its trial.json, an unfinished one its
checkpoint. A group that Ray restarts after a death, or a job that is submitted again, reads them and goes on.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch

from pipeline.clustering.loader import load_images
from pipeline.clustering.training import TrialTraining, Window
from pipeline.clustering.trial import Trial
from pipeline.config import ClusteringConfig
from pipeline.errors import ClusteringError
from pipeline.layout import RunPaths
from pipeline.progress import Progress, say
from pipeline.storage import Storage, write_json

POLL_S = 1.0
COLLECTIVE_TIMEOUT_S = 600
"""A collective operation that waits longer ends the attempt: a worker is stuck."""


@dataclass(frozen=True)
class TrainJob:
    """What every worker is told."""

    storage: Storage
    paths: RunPaths
    config: ClusteringConfig
    trials: list[Trial]
    shard_keys: list[str]
    news: Any
    """Handle of the News actor."""


def train_trials(
    storage: Storage, paths: RunPaths, config: ClusteringConfig, trials: list[Trial], shard_keys: list[str]
) -> None:
    """Train `trials` and leave a checkpoint and a trial.json of each in the workspace.

    Raises:
        ClusteringError: the cluster is too small, training diverged, or workers died more than `max_failures` times.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = choose_gpu(config)
    resources = {"CPU": float(config.cpus_per_worker), **({"GPU": 1.0} if use_gpu else {})}
    _check_resources(config, resources)
    news = ray.remote(News).options(num_cpus=0).remote()
    job = TrainJob(storage, paths, config, trials, shard_keys, news)
    with tempfile.TemporaryDirectory(prefix="ray-train-") as folder, _shown(news):
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=use_gpu, resources_per_worker=resources),
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
            run_config=RunConfig(
                name=paths.run_id,
                storage_path=folder,
                failure_config=FailureConfig(max_failures=config.max_failures, controller_failure_limit=0),
            ),
        )
        trainer.fit()


def train_worker(loop_config: dict[str, Any]) -> None:
    """Body of one Ray Train worker: all trials that are not done, in order."""
    from ray.train.torch import get_device

    job: TrainJob = loop_config["job"]
    torch.set_num_threads(job.config.cpus_per_worker)
    device = get_device()
    rank = ray.train.get_context().get_world_rank()
    images = load_images(job.storage, job.shard_keys)
    for trial in job.trials:
        marker = job.paths.trial_marker(trial.name)
        if job.storage.exists(marker):
            continue
        training = TrialTraining(job.config, trial, images, job.storage, job.paths.checkpoint(trial.name), device)
        if rank == 0:
            job.news.started.remote(trial, training.iteration)
        result = training.run(job.news.tell.remote if rank == 0 else lambda window: None)
        if rank == 0:
            write_json(job.storage, marker, result.to_json())
            job.news.finished.remote(trial, result.loss)
        if torch.distributed.is_initialized():
            # The others must not look for the next trial's marker before this one's is there.
            torch.distributed.barrier()


class News:
    """Actor that rank 0 tells how training goes, and that the driver asks."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._window: Window | None = None

    def started(self, trial: Trial, iteration: int) -> None:
        """A trial begins, or goes on at `iteration`."""
        self._window = None
        if iteration:
            self._lines.append(f"{trial.name}: continues at iteration {iteration}")

    def tell(self, window: Window) -> None:
        """The state of the running trial."""
        self._window = window

    def finished(self, trial: Trial, loss: float) -> None:
        """A trial is done."""
        self._window = None
        self._lines.append(f"{trial.name}: done, loss {loss:.6g}")

    def ask(self) -> tuple[list[str], Window | None]:
        """Lines since the last question, and the state of the running trial."""
        lines, self._lines = self._lines, []
        return lines, self._window


def choose_gpu(config: ClusteringConfig) -> bool:
    """Whether workers get a GPU each."""
    if config.device != "auto":
        return config.device == "cuda"
    return ray.cluster_resources().get("GPU", 0) >= config.workers


def _check_resources(config: ClusteringConfig, per_worker: dict[str, float]) -> None:
    """A group that never fits would wait for ever."""
    available = ray.cluster_resources()
    for resource, amount in per_worker.items():
        needed = amount * config.workers
        if needed > available.get(resource, 0):
            raise ClusteringError(
                f"{config.workers} workers need {needed:g} {resource}, the cluster has "
                f"{available.get(resource, 0):g}: lower --workers or clustering.cpus_per_worker, or add nodes"
            )


@contextmanager
def _shown(news: Any) -> Iterator[None]:
    """Show what `news` hears while training runs."""
    stop = threading.Event()

    def follow() -> None:
        bar: Progress | None = None
        position = 0
        finished = False
        while not finished:
            finished = stop.wait(POLL_S)
            lines, window = ray.get(news.ask.remote())
            if bar and (lines or finished):
                bar.close()
                bar = None
            for line in lines:
                say("cluster", line)
            if window is None:
                continue
            total = window.iteration + window.iterations_left
            if bar is None:
                bar, position = Progress("cluster", total, "it", done=window.iteration), window.iteration
            bar.set_total(total)
            modules = "+".join(window.modules) or "identity"
            bar.advance(window.iteration - position, f"{window.trial.name} loss {window.loss:.6g} {modules}")
            position = window.iteration

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)
