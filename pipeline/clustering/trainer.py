"""The Ray Train side: a group of workers that trains one trial after the other with DDP.

Starting a worker group takes far longer than a small trial needs, so one group works through all trials. The truth
lies in the workspace, not in Ray Train's own state: a finished trial has its trial.json, an unfinished one its
checkpoint. A group that Ray restarts after a death, or a job that is submitted again, reads them and goes on.
"""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch

from pipeline.clustering.loader import load_images
from pipeline.clustering.training import TrialTraining, Window
from pipeline.clustering.trial import Trial, is_done
from pipeline.config import ClusteringConfig
from pipeline.errors import ClusteringError
from pipeline.layout import RunPaths
from pipeline.progress import Progress, say
from pipeline.session import connect_ray
from pipeline.storage import Storage, write_json

POLL_S = 1.0
SILENCE_S = 90.0
"""Workers that have not been heard of for so long are probably waiting for resources."""
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
    threads: int
    """CPU threads of each worker."""
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

    connect_ray()
    use_gpu = choose_gpu(config)
    threads = threads_per_worker(config)
    resources = {"CPU": float(threads), **({"GPU": 1.0} if use_gpu else {})}
    _check_resources(config, resources)
    news = ray.remote(News).options(num_cpus=0).remote()
    job = TrainJob(storage, paths, config, trials, shard_keys, threads, news)
    with tempfile.TemporaryDirectory(prefix="ray-train-") as folder, _shown(news), _interruptible():
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
    if error := ray.get(news.hopeless.remote()):
        raise error


def train_worker(loop_config: dict[str, Any]) -> None:
    """Body of one Ray Train worker: all trials that are not done, in order."""
    from ray.train.torch import get_device

    job: TrainJob = loop_config["job"]
    if ray.get(job.news.hopeless.remote()):
        return  # A worker before this one found that another attempt would end alike.
    torch.set_num_threads(job.threads)
    try:
        _train_all(job, get_device(), ray.train.get_context().get_world_rank())
    except ClusteringError as error:
        ray.get(job.news.give_up.remote(error))
        raise


def _train_all(job: TrainJob, device: torch.device, rank: int) -> None:
    images = load_images(job.storage, job.shard_keys)
    for trial in job.trials:
        if is_done(job.storage, job.paths, trial):
            continue
        training = TrialTraining(job.config, trial, images, job.storage, job.paths.checkpoint(trial.name), device)
        if rank == 0:
            job.news.started.remote(trial, training.iteration)
        result = training.run(job.news.tell.remote if rank == 0 else lambda window: None)
        if rank == 0:
            write_json(job.storage, job.paths.trial_marker(trial.name), result.to_json())
            job.news.finished.remote(trial, result.loss)
        if torch.distributed.is_initialized():
            # The others must not look for the next trial's marker before this one's is there.
            torch.distributed.barrier()


class News:
    """Actor that rank 0 tells how training goes, and that the driver asks."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._window: Window | None = None
        self._error: ClusteringError | None = None

    def give_up(self, error: ClusteringError) -> None:
        """Training cannot succeed, however often it starts again."""
        self._error = error

    def hopeless(self) -> ClusteringError | None:
        """Why training cannot succeed, if so."""
        return self._error

    def started(self, trial: Trial, iteration: int) -> None:
        """A trial begins, or goes on at `iteration`."""
        self._window = None
        self._lines.append(f"{trial.name}: " + (f"continues at iteration {iteration}" if iteration else "starts"))

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
    gpus = ray.cluster_resources().get("GPU", 0)
    if 0 < gpus < config.workers:
        say("cluster", f"{config.workers} workers cannot have a GPU each ({gpus:g} in the cluster): training on CPUs")
    return gpus >= config.workers


def threads_per_worker(config: ClusteringConfig) -> int:
    """CPU threads of one worker; by default a fair part of a single machine, and one thread on a cluster."""
    if config.cpus_per_worker is not None:
        return config.cpus_per_worker
    alone = len(ray.nodes()) == 1
    return max(1, int(ray.cluster_resources().get("CPU", 1)) // config.workers) if alone else 1


def _check_resources(config: ClusteringConfig, per_worker: dict[str, float]) -> None:
    """A group that never fits would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # A worker does not span nodes.
    places = sum(min(int(node.get(name, 0) // amount) for name, amount in per_worker.items()) for node in nodes)
    if places < config.workers:
        worker = " and ".join(f"{amount:g} {name}" for name, amount in per_worker.items())
        raise ClusteringError(
            f"{config.workers} workers of {worker} each: the cluster's {len(nodes)} node(s) have room for {places}; "
            "lower --workers or clustering.cpus_per_worker, or add nodes"
        )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ray Train takes over Ctrl-C for good and turns it into an exit; give it back, as what it was."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


@contextmanager
def _shown(news: Any) -> Iterator[None]:
    """Show what `news` hears while training runs."""
    stop = threading.Event()

    def follow() -> None:
        bar: Progress | None = None
        position = 0
        finished, silent = False, True
        started = time.monotonic()
        while not finished:
            finished = stop.wait(POLL_S)
            lines, window = ray.get(news.ask.remote())
            if silent and time.monotonic() - started > SILENCE_S:
                say("cluster", "still waiting for workers: other jobs may hold the cluster's CPUs or GPUs")
                silent = False
            silent = silent and not (lines or window)
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
