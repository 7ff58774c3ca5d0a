"""The training of one trial, the same on every worker: DDP averages gradients, everything else is computed alike.

Decisions (convergence, restarts, learning rate) are made at the end of a window, from sums over all workers.
Checkpoints are taken there as well, and all random numbers derive from seed and iteration, so a resumed run repeats the
uninterrupted one. On CPUs with one or two workers it does so bit for bit. With more workers the results agree only up
to rounding: the order in which a backend adds the terms of an element depends on its position in a DDP bucket, and DDP
rearranges its buckets after the first step of every attempt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.clustering.aligned_start import AlignedStart, aligned_start, sample_size
from pipeline.clustering.checkpoint import CheckpointWriter, load_checkpoint, model_state
from pipeline.clustering.curriculum import Curriculum
from pipeline.clustering.data.images import ImageSet, to_float
from pipeline.clustering.data.loader import BatchStream, EpochOrder, Loader
from pipeline.clustering.initial_prototypes import initial_prototypes
from pipeline.clustering.model.build import build_method
from pipeline.clustering.model.method import Assignment
from pipeline.clustering.prealignment import prealign
from pipeline.clustering.snapshots import Snapshots, snapshots_of
from pipeline.clustering.split_merge import Explained, split_and_merge
from pipeline.clustering.storage_retries import read_with_retries
from pipeline.clustering.trial import ClusterRecord, HistoryPoint, TrialProgress, TrialResult, TrialTask
from pipeline.clustering.warm_start import take_over
from pipeline.clustering.workers import range_over_workers, rank_and_world_size, sum_over_workers
from pipeline.errors import ClusteringError, StorageError

REPORT_S = 5.0
"""Longest time between two reports within a window."""
ASSIGN_BATCH = 256
"""Number of images per batch of the final evaluation."""
RESTART_WINDOWS = 2
"""Prototypes may restart after every so many windows of a stage, which leaves restarted ones time to align."""
GRADIENT_BUCKETS = 4
"""Number of buckets in which workers exchange their gradients."""


class TrialTraining:
    """Trains one trial on this worker's share of every batch.

    A trial with a checkpoint continues from it. Any other trial starts from the model `task.earlier_key`, or else as
    `config.initialization` says.

    Args:
        task: trial to train; `task.best_key` is deleted if the last model is as good on all images.
        images: all images of the collection, the same on every worker.
        device: device of this worker.
        log: called with lines for the user, such as failures of the storage; also from another thread.

    Raises:
        ClusteringError: K exceeds the number of images, or the loss is not finite.
        StorageError: the checkpoint cannot be read, or is not the same on all workers.
    """

    def __init__(
        self,
        task: TrialTask,
        images: ImageSet,
        device: torch.device,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        config, trial, storage = task.config, task.trial, task.storage
        if trial.k > len(images):
            raise ClusteringError(
                f"k {trial.k} is above the {len(images)} images of the collection; choose a smaller k"
            )
        self.task, self.config, self.trial = task, config, trial
        self.images, self.device, self.log = images, device, log
        self.rank, self.world_size = rank_and_world_size()
        order = EpochOrder(images.sizes, trial.seed, images.window)
        self.loader = Loader(images, BatchStream(order, config.batch_size, self.rank, self.world_size), device)
        uri = storage.uri(task.checkpoint_key)
        resumes = read_with_retries(lambda: storage.exists(task.checkpoint_key), uri, log)
        starts = not resumes and task.earlier_key is None
        started = time.monotonic()
        start, initial = self._find_start() if starts else (None, torch.zeros(trial.k, *images.shape))
        self.method = build_method(config, initial, trial.seed, device.type).to(device)
        self.optimizer = torch.optim.Adam(
            [
                {"params": self.method.network_parameters(), "weight_decay": config.weight_decay},
                {"params": [p for n, p in self.method.named_parameters() if "." not in n], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            fused=True,
        )
        self.curriculum = Curriculum(config)
        self.iteration = 0
        """Number of iterations done; with the seed it determines the loader's position and all random numbers."""
        self.origin = "starts"
        """Description for the user of the point where training begins."""
        self.seconds = 0.0
        """Training time over all attempts, without start-up."""
        self.history: list[HistoryPoint] = []
        self.best_loss = math.inf
        """Window loss of the model at `task.best_key`."""
        self.snapshots = Snapshots()
        self._window_stage, self._window_names = self.curriculum.current, self.curriculum.names
        """Stage of the last window, and `Curriculum.names` in it."""
        resume_error: ClusteringError | None = None
        if resumes:
            try:
                self._resume()
            except ClusteringError as error:  # possibly on this worker only: the others must not wait for it
                self.iteration, resume_error = -1, error
        first, last = range_over_workers(self.iteration, device)
        if resume_error is not None and last == -1:
            raise resume_error
        if first < last:
            raise StorageError(
                f"{uri}: workers read different checkpoints, of iterations {first} to {last}; "
                "check that all nodes see the same workspace"
            )
        if not resumes and task.earlier_key is not None:
            take_over(self.method, storage, task.earlier_key, images, trial.seed)
            self.curriculum.begin_with_all()
        self._start_stage()
        if start is not None and config.aligned_module is not None:
            prealign(self.method, config.aligned_module, start, trial.seed)
        if starts:
            self.seconds = time.monotonic() - started
        if not resumes:
            self._take_snapshot(self.curriculum.names)

    def _find_start(self) -> tuple[AlignedStart | None, Tensor]:
        """Return the aligned start, if configured, and the prototypes (K, C, H, W) to start from.

        Only the first worker computes the prototypes; DDP sends them to the others.
        """
        config, (k, seed) = self.config, (self.trial.k, self.trial.seed)
        any_light = "color" in config.transforms
        prototypes = torch.zeros(k, *self.images.shape)
        if config.aligned_module is None:
            if self.rank == 0:
                prototypes = initial_prototypes(self.images, k, seed, config.initialization, any_light)
            return None, prototypes
        compared = sample_size(len(self.images), self.images.shape, k)
        if self.rank == 0:
            self.log(f"aligns {compared:,} images to each other")
        start = aligned_start(self.images, k, seed, any_light, self.device)
        if self.rank == 0:
            prototypes = start.prototypes(any_light)
        return start, prototypes

    def run(self, report: Callable[[TrialProgress], None] = lambda progress: None) -> TrialResult:
        """Train until the curriculum is done, evaluate the model on all images, and publish the final checkpoint.

        With `task.until`, training pauses at the end of the window that reaches this iteration, and publishes a
        checkpoint to continue from; the result describes this point.

        Args:
            report: called at the end of every window, and every few seconds within a window.
        """
        self._report = report
        self._reported_at = saved_at = started = time.monotonic()
        self._started = started - self.seconds
        until = self.task.until
        checkpoints = CheckpointWriter(self.task.storage, self.task.checkpoint_key, self.log)
        try:
            while not (self.curriculum.done or (until is not None and self.iteration >= until)):
                self._train_window()
                self.seconds = time.monotonic() - self._started
                self._report_progress(self.history[-1].loss, self.curriculum.stages_left())
                due = time.monotonic() - saved_at >= self.config.checkpoint_every_s
                if self.rank == 0 and due and self._save(checkpoints):
                    saved_at = time.monotonic()
        except BaseException:
            checkpoints.close()
            raise
        finally:
            self.loader.close()
        # The last checkpoint may still be being written: the other workers do not wait for it.
        loss, clusters = self.evaluate()
        if not math.isfinite(loss):
            checkpoints.close()
            raise self._not_finite(self.iteration)
        result = TrialResult(
            k=self.trial.k,
            seed=self.trial.seed,
            loss=loss,
            iterations=self.iteration,
            image_passes=self.iteration * self.config.batch_size,
            seconds=time.monotonic() - self._started,
            workers=self.world_size,
            stages=self.curriculum.history,
            history=self.history,
            clusters=clusters,
        )
        if self.rank == 0:
            self._finish(checkpoints, loss)
        return result

    def _save(self, checkpoints: CheckpointWriter) -> bool:
        """Start to write a checkpoint, and the model if it is the best so far. Return False if this was skipped."""
        best_loss = self.best_loss
        if self.curriculum.is_complete(self._window_stage):
            best_loss = min(best_loss, self.history[-1].loss)
        best = {self.task.best_key: model_state(self.method, self.config)} if best_loss < self.best_loss else {}
        started = checkpoints.write({**self._state(), "best_loss": best_loss}, best)
        if started:
            self.best_loss = best_loss
        return started

    def _finish(self, checkpoints: CheckpointWriter, loss: float) -> None:
        """Publish the last checkpoint; its model has `loss` on all images."""
        checkpoints.close()
        if not self.curriculum.done:
            self._save(checkpoints)
            checkpoints.close()
            return
        # A finished trial is never trained further, and the optimiser's moments would triple the size.
        checkpoints.finish({**self._state(), "optimizer": None})
        if loss <= self.best_loss:  # the last model is the best
            try:
                self.task.storage.delete(self.task.best_key)
            except StorageError as error:  # the file is superfluous but harmless
                self.log(f"{self.task.storage.uri(self.task.best_key)} is not needed but could not be deleted: {error}")

    @torch.no_grad()
    def evaluate(self) -> tuple[float, list[ClusterRecord]]:
        """Return the mean loss over all images, and all clusters; each worker evaluates its share of the images."""
        self.method.eval()
        k = self.trial.k
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        images_KK = torch.zeros(k * k, dtype=torch.int64, device=self.device)
        for batch in self.images.batches(ASSIGN_BATCH, self.rank, self.world_size):
            assigned = self.method.assign(to_float(batch.to(self.device)))
            total += assigned.loss_B.double().sum()
            images_KK += (assigned.cluster_B * k + assigned.runner_up_B).bincount(minlength=k * k)
        self.method.train()
        return float(sum_over_workers(total)) / len(self.images), _clusters(sum_over_workers(images_KK).view(k, k))

    def _train_window(self) -> None:
        """Train for one window, then make the decisions that are due at its end."""
        length = self.curriculum.next_window()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        counts_K = torch.zeros(self.trial.k, dtype=torch.float64, device=self.device)
        finite = torch.zeros((), dtype=torch.int64, device=self.device)
        image_B: list[Tensor] = []
        assigned: list[Assignment] = []
        self._window_stage, self._window_names = self.curriculum.current, self.curriculum.names
        for done in range(1, length + 1):
            images = self.loader.batch(self.iteration)
            self.optimizer.zero_grad(set_to_none=True)
            output = self.parallel(images)
            output.loss.backward()
            self.optimizer.step()
            loss_sum += output.objective.double()
            finite += loss_sum.isfinite()
            counts_K += output.assigned.cluster_B.bincount(minlength=self.trial.k)
            image_B.append(self.loader.indices(self.iteration))
            assigned.append(output.assigned)
            self.iteration += 1
            if time.monotonic() - self._reported_at > REPORT_S and done < length:
                (level, iterations), *later = self.curriculum.stages_left()
                left = [(level, iterations - done), *later]
                self._report_progress(float(loss_sum) / done, left)
        sums = sum_over_workers(torch.cat([loss_sum[None], counts_K])).cpu()
        loss = float(sums[0]) / (length * self.world_size)
        # The loss was computed before the last step, but a checkpoint must not contain what this step may have broken.
        if not math.isfinite(loss) or self.method.broken_part():
            raise self._not_finite(self.iteration - length + min(length, int(finite) + 1))
        counts_K = sums[1:]
        learning_rate = self.optimizer.param_groups[0]["lr"]
        ended = self.curriculum.update(length, loss)
        shares_K = counts_K / counts_K.sum()
        if self.method.fits_color:
            clusters, colors = zip(*((a.cluster_B, a.parameters["color"]) for a in assigned), strict=True)
            self.method.adopt_light(torch.cat(clusters), torch.cat(colors))
        restarts = []
        if self.curriculum.current.final or self.curriculum.done:
            # One image more for each cluster keeps the proportion of an empty one above 0.
            self.method.set_shares(((counts_K + 1) / (counts_K + 1).sum()).to(self.method.prototypes))
        elif self.config.restart_below and not ended and self.curriculum.windows % RESTART_WINDOWS == 0:
            explained = Explained.gather(image_B, assigned)
            restarts = split_and_merge(self.method, self.optimizer, explained, self.images, self.config.restart_below)
        self.history.append(
            HistoryPoint(
                iteration=self.iteration,
                loss=loss,
                learning_rate=learning_rate,
                active_modules=len(self.method.active_names),
                reassigned=len(restarts),
                largest_share=float(shares_K.max()),
                smallest_share=float(shares_K.min()),
            )
        )
        self._take_snapshot(self._window_names)
        if ended and not self.curriculum.done:
            self._start_stage()

    def _take_snapshot(self, names: list[str]) -> None:
        if self.rank == 0:  # only this worker writes checkpoints
            self.snapshots.take(self.method.prototypes, len(self.history), self.iteration, names)

    def _report_progress(self, loss: float, stages_left: list[tuple[int, int]]) -> None:
        level, names, seconds = self._window_stage.level, self._window_names, time.monotonic() - self._started
        self._report(TrialProgress(self.trial, self.iteration, loss, level, names, seconds, stages_left))
        self._reported_at = time.monotonic()

    def _not_finite(self, iteration: int) -> ClusteringError:
        """Return the error for a number that is not finite at `iteration`."""
        modules = "+".join(self._window_names) or "identity"
        where = self.method.broken_part() or "the transformed prototypes"
        kept = "the last checkpoint is kept"
        if self.best_loss < math.inf:
            kept += f", and the best model in {self.task.storage.uri(self.task.best_key)}"
        return ClusteringError(
            f"trial {self.trial.name}: a number is not finite at iteration {iteration} of stage {modules}, in {where}; "
            f"{kept}; try a lower clustering.learning_rate"
        )

    def _start_stage(self) -> None:
        """Adapt model, learning rate and DDP to the current stage of the curriculum."""
        stage = self.curriculum.current
        self.method.activate(stage.predicted, stage.variances)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self.curriculum.learning_rate_factor
        self.parallel: nn.Module = self.method
        if self.world_size > 1:
            # The model is wrapped again for each stage, since DDP fixes the set of parameters with gradients.
            self.parallel = DistributedDataParallel(
                self.method,
                forward_sync_buffers=False,
                gradient_as_bucket_view=True,
                bucket_cap_mb=bucket_mb(self.method.parameters()),
            )

    def _resume(self) -> None:
        state = load_checkpoint(self.task.storage, self.task.checkpoint_key, self.log)
        self.method.load_state_dict(state["model"])
        if state["optimizer"] is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.curriculum.restore(state["curriculum"])
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.history = [HistoryPoint(**point) for point in state["history"]]
        self.snapshots.taken = snapshots_of(state)
        self.best_loss = state["best_loss"]
        self.origin = f"continues at iteration {self.iteration}"
        if state["workers"] != self.world_size:
            # The batches are the same, but their sums are rounded in a different order.
            self.origin += f", with {self.world_size} workers instead of {state['workers']}"

    def _state(self) -> dict[str, Any]:
        return {
            **model_state(self.method, self.config),
            "optimizer": self.optimizer.state_dict(),
            "curriculum": self.curriculum.state(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "workers": self.world_size,
            "history": [vars(point) for point in self.history],
            "snapshots": self.snapshots.state(),
            "best_loss": self.best_loss,
        }


def _clusters(images_KK: Tensor) -> list[ClusterRecord]:
    """Return a record of each cluster, given the number of images by cluster and runner-up."""
    clusters = []
    for cluster, by_runner_up in enumerate(images_KK.tolist()):
        images, rival = sum(by_runner_up), max(range(len(by_runner_up)), key=lambda other: by_runner_up[other])
        if not images or rival == cluster:
            clusters.append(ClusterRecord(images, None, 0.0))
        else:
            clusters.append(ClusterRecord(images, rival, by_runner_up[rival] / images))
    return clusters


def bucket_mb(parameters: Iterable[nn.Parameter]) -> int:
    """Return the size of DDP's gradient buckets, in MiB.

    A bucket is sent as soon as it is full, while the gradients of earlier layers are still being computed; workers wait
    only for the last bucket. DDP's default of 25 MiB holds all gradients of most models here, so nothing would overlap.
    Below 1 MiB, latency dominates.
    """
    gradient_bytes = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    return max(1, round(gradient_bytes / GRADIENT_BUCKETS / 2**20))
