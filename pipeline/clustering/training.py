"""One trial's training, the same on every worker: DDP averages gradients, everything else is computed alike.

Decisions (convergence, reassignment, learning rate) fall at the end of a window, from sums over all workers.
Checkpoints are taken there too, and all random numbers derive from seed and iteration, so a resumed run repeats the
uninterrupted one: bit for bit on the CPUs of one Linux machine, where gradients are added in the order of workers. Of
more than two workers that share no memory, gloo adds those of DDP's first step in another order than later ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.clustering.checkpoint import CheckpointWriter, load_checkpoint, model_state
from pipeline.clustering.curriculum import Curriculum
from pipeline.clustering.data.images import ImageSet, to_float
from pipeline.clustering.data.loader import BatchStream, EpochOrder, Loader, initial_images
from pipeline.clustering.model.build import build_method
from pipeline.clustering.patience import read_patiently
from pipeline.clustering.reassign import reassign_tiny
from pipeline.clustering.seeding import generator
from pipeline.clustering.snapshots import Snapshots, snapshots_of
from pipeline.clustering.trial import HistoryPoint, Trial, TrialResult
from pipeline.clustering.warm_start import take_over
from pipeline.clustering.workers import exchange_gradients, place, range_of, summed
from pipeline.config import ClusteringConfig
from pipeline.errors import ClusteringError, StorageError
from pipeline.storage import Storage

REPORT_S = 5.0
"""Longest silence within a window."""
ASSIGN_BATCH = 256
"""Images per batch of the final evaluation."""
GRADIENT_BUCKETS = 4
"""Parts in which workers exchange their gradients."""


@dataclass(frozen=True)
class Window:
    """News of a trial: averages over the window so far."""

    trial: Trial
    iteration: int
    iterations_left: int
    """Upper bound."""
    loss: float
    modules: list[str]


class TrialTraining:
    """Trains one trial on this worker's share of every batch.

    Args:
        config: of the clustering.
        trial: K and seed.
        images: the whole collection, the same on every worker.
        storage, checkpoint_key: where the trial's checkpoint is read from, if there, and written to.
        best_key: where the model is kept that has the lowest loss of a window with all modules so far, as of the
            checkpoints; it goes when the last model is as good on all images.
        device: of this worker.
        earlier_key: of a trained model to start from, where the trial has no checkpoint; by default it starts from
            random images.
        note: called with what the user should know of, such as storage that fails; from another thread, too.

    Raises:
        ClusteringError: K exceeds the number of images, or the loss stops being a number.
        StorageError: the checkpoint cannot be read, or not by all workers alike.
    """

    def __init__(
        self,
        config: ClusteringConfig,
        trial: Trial,
        images: ImageSet,
        storage: Storage,
        checkpoint_key: str,
        best_key: str,
        device: torch.device,
        earlier_key: str | None = None,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        if trial.k > len(images):
            raise ClusteringError(
                f"k {trial.k} is above the {len(images)} images of the collection; choose a smaller k"
            )
        self.config, self.trial, self.images, self.device = config, trial, images, device
        self.storage, self.checkpoint_key, self.best_key, self.note = storage, checkpoint_key, best_key, note
        self.rank, self.world_size = place()
        order = EpochOrder(images.sizes, trial.seed, images.window)
        self.loader = Loader(images, BatchStream(order, config.batch_size, self.rank, self.world_size), device)
        uri = storage.uri(checkpoint_key)
        resumes = read_patiently(lambda: storage.exists(checkpoint_key), uri, note)
        initial = torch.zeros(trial.k, *images.shape)
        if not resumes:
            initial = initial_images(images, trial.k, trial.seed, config.initialization)
        self.method = build_method(config, initial, trial.seed, device.type).to(device)
        self.optimizer = torch.optim.Adam(
            [
                {"params": self.method.network_parameters(), "weight_decay": config.weight_decay},
                {"params": [p for n, p in self.method.named_parameters() if "." not in n], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            fused=True,
        )
        self.curriculum = Curriculum(config.schedule, config.transforms)
        self.iteration = 0
        """Iterations done; with the seed it is the loader's position and the state of all random numbers."""
        self.origin = "starts"
        """Where training begins, for the user."""
        self.seconds = 0.0
        self.history: list[HistoryPoint] = []
        self.best_loss = math.inf
        """Of a window, of the model at `best_key`."""
        self.snapshots = Snapshots()
        broken: ClusteringError | None = None
        if resumes:
            try:
                self._resume()
            except ClusteringError as error:  # of this worker, perhaps: the others must not wait for it
                self.iteration, broken = -1, error
        first, last = range_of(self.iteration, device)
        if broken is not None and last == -1:
            raise broken
        if first < last:
            raise StorageError(
                f"{uri}: workers read it at iterations {first} to {last}; do all nodes see the same workspace?"
            )
        if not resumes and earlier_key is not None:
            take_over(self.method, storage, earlier_key, images, trial.seed)
            self.curriculum.begin_with_all()
        self._start_stage()
        if not resumes:
            self._take_snapshot(self.method.active_modules)

    def run(
        self,
        report: Callable[[Window], None] = lambda window: None,
        until: int | None = None,
    ) -> TrialResult:
        """Train until the curriculum is done, evaluate on all images, and leave the final checkpoint.

        The result of a trial that pauses is that at this point.

        Args:
            until: pause at the end of the window that reaches this iteration, with a checkpoint to go on from.
            report: called at the end of every window, and within one every few seconds.
        """
        self._report = report
        self._reported_at = saved_at = started = time.monotonic()
        before = self.seconds
        checkpoints = CheckpointWriter(self.storage, self.checkpoint_key, self.note)
        try:
            while not (self.curriculum.done or (until is not None and self.iteration >= until)):
                self._train_window()
                self.seconds = before + time.monotonic() - started
                self._tell(self.history[-1].loss, self.history[-1].active_modules, self.curriculum.iterations_left())
                due = time.monotonic() - saved_at >= self.config.checkpoint_every_s
                if self.rank == 0 and due and self._save(checkpoints):
                    saved_at = time.monotonic()
        except BaseException:
            checkpoints.close()
            raise
        finally:
            self.loader.close()
        # While the last checkpoint is still being written, perhaps: the other workers do not wait for it.
        loss = self.evaluate()
        if not math.isfinite(loss):
            checkpoints.close()
            raise self._not_a_number(self.iteration)
        result = TrialResult(
            k=self.trial.k,
            seed=self.trial.seed,
            loss=loss,
            iterations=self.iteration,
            image_passes=self.iteration * self.config.batch_size,
            seconds=before + time.monotonic() - started,
            workers=self.world_size,
            stages=self.curriculum.history,
            history=self.history,
        )
        if self.rank == 0:
            self._finish(checkpoints, loss)
        return result

    def _save(self, checkpoints: CheckpointWriter) -> bool:
        """Begin a checkpoint to go on from, and the model by itself if it is the best so far; False if left out."""
        last, loss = self.history[-1], self.best_loss
        if last.active_modules == len(self.config.transforms):
            loss = min(loss, last.loss)
        best = {self.best_key: model_state(self.method, self.config)} if loss < self.best_loss else {}
        begun = checkpoints.write({**self._state(), "best_loss": loss}, best)
        if begun:
            self.best_loss = loss
        return begun

    def _finish(self, checkpoints: CheckpointWriter, loss: float) -> None:
        """Leave the last checkpoint, of a model that has `loss` on all images."""
        checkpoints.close()
        if not self.curriculum.done:
            self._save(checkpoints)
            checkpoints.close()
            return
        # A finished trial is never trained further: its moments would only triple the size.
        checkpoints.finish({**self._state(), "optimizer": None})
        if loss <= self.best_loss:  # the last model is the best
            try:
                self.storage.delete(self.best_key)
            except StorageError as error:  # it is in nobody's way
                self.note(f"{self.storage.uri(self.best_key)} is of no use any more and stays: {error}")

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss over all images; each worker evaluates its part."""
        self.method.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in self.images.parts(ASSIGN_BATCH, self.rank, self.world_size):
            total += self.method.assign(to_float(batch.to(self.device))).loss_B.double().sum()
        self.method.train()
        return float(summed(total)) / len(self.images)

    def _train_window(self) -> None:
        length = self.curriculum.next_window()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        counts_K = torch.zeros(self.trial.k, dtype=torch.float64, device=self.device)
        finite = torch.zeros((), dtype=torch.int64, device=self.device)
        for done in range(1, length + 1):
            images = self.loader.batch(self.iteration)
            self.optimizer.zero_grad(set_to_none=True)
            output = self.parallel(images)
            output.loss.backward()
            self.optimizer.step()
            loss_sum += output.objective.double()
            finite += loss_sum.isfinite()
            counts_K += output.cluster_B.bincount(minlength=self.trial.k)
            self.iteration += 1
            if time.monotonic() - self._reported_at > REPORT_S and done < length:
                left = self.curriculum.iterations_left() - done
                self._tell(float(loss_sum) / done, self.method.active_modules, left)
        sums = summed(torch.cat([loss_sum[None], counts_K])).cpu()
        loss = float(sums[0]) / (length * self.world_size)
        # The loss is that before the last step; a checkpoint must not hold what that step broke.
        if not math.isfinite(loss) or self.method.broken_part():
            raise self._not_a_number(self.iteration - length + min(length, int(finite) + 1))
        shares_K = sums[1:] / sums[1:].sum()
        learning_rate = self.optimizer.param_groups[0]["lr"]
        active_modules = self.method.active_modules
        ended = self.curriculum.update(length, loss)
        restarted: list[int] = []
        if not self.curriculum.done:
            noise = generator(self.trial.seed, self.iteration)
            restarted = reassign_tiny(self.method, self.optimizer, shares_K, self.config.reassign_below, noise)
        self.history.append(
            HistoryPoint(
                iteration=self.iteration,
                loss=loss,
                learning_rate=learning_rate,
                active_modules=active_modules,
                reassigned=len(restarted),
                largest_share=float(shares_K.max()),
                smallest_share=float(shares_K.min()),
            )
        )
        self._take_snapshot(active_modules)
        if ended and not self.curriculum.done:
            self._start_stage()

    def _take_snapshot(self, active_modules: int) -> None:
        if self.rank == 0:  # which alone writes checkpoints
            modules = self.config.transforms[:active_modules]
            self.snapshots.take(self.method.prototypes, len(self.history), self.iteration, modules)

    def _tell(self, loss: float, active_modules: int, iterations_left: int) -> None:
        modules: list[str] = list(self.config.transforms[:active_modules])
        self._report(Window(self.trial, self.iteration, iterations_left, loss, modules))
        self._reported_at = time.monotonic()

    def _not_a_number(self, iteration: int) -> ClusteringError:
        modules = "+".join(self.method.active_names) or "identity"
        where = self.method.broken_part() or "what the modules make of the prototypes"
        kept = "the last checkpoint is kept"
        if self.best_loss < math.inf:
            kept += f", and the best model in {self.storage.uri(self.best_key)}"
        return ClusteringError(
            f"trial {self.trial.name}: a number is not finite at iteration {iteration} of stage {modules}, in {where}; "
            f"{kept}; try a lower clustering.learning_rate"
        )

    def _start_stage(self) -> None:
        """Bring model, learning rate and DDP in line with the curriculum."""
        self.method.activate(self.curriculum.active_modules)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self.curriculum.learning_rate_factor
        self.parallel: nn.Module = self.method
        if self.world_size > 1:
            # Wrapped anew for each stage: DDP fixes the set of parameters with gradients when it is built.
            self.parallel = parallel = DistributedDataParallel(
                self.method,
                forward_sync_buffers=False,
                gradient_as_bucket_view=True,
                bucket_cap_mb=bucket_mb(self.method.parameters()),
            )
            exchange_gradients(parallel)

    def _resume(self) -> None:
        state = load_checkpoint(self.storage, self.checkpoint_key, self.note)
        self.method.load_state_dict(state["model"])
        if state["optimizer"] is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.curriculum.restore(state["curriculum"])
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.history = [HistoryPoint(**point) for point in state["history"]]
        self.snapshots.taken = snapshots_of(state)
        self.best_loss = state.get("best_loss", math.inf)  # an earlier version kept none
        self.origin = f"continues at iteration {self.iteration}"
        if state["workers"] != self.world_size:
            # The same batches, but their sums are rounded in another order.
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


def bucket_mb(parameters: Iterable[nn.Parameter]) -> int:
    """MiB of gradients that workers exchange at once.

    By NCCL and gloo a bucket travels as soon as it is full, while the gradients of earlier layers are still computed;
    only the last one is waited for. DDP's 25 MiB hold all that most models here have, so nothing would overlap. Below
    1 MiB it is latency that counts.
    """
    gradient_bytes = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    return max(1, round(gradient_bytes / GRADIENT_BUCKETS / 2**20))
