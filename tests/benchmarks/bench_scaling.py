"""Speed of training with two workers of one thread each, compared with one worker at the same global batch size.

    python tests/benchmarks/bench_scaling.py [--json FILE]

The script runs the training of the pipeline itself on the same pictures, in separate processes under DDP with gloo. It
alternates between one and two workers, measures images per second once all modules are active, and compares the losses.
README.md beside this file has the last measured table.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script, this file can only import from its own folder

from pipeline.clustering.data.images import ImageSet
from pipeline.clustering.training import TrialTraining
from pipeline.clustering.trial import Trial, TrialProgress, TrialTask
from pipeline.clustering.workers import WORKER_ENVIRONMENT
from pipeline.config import ClusteringConfig
from pipeline.paths import RunPaths
from pipeline.storage import LocalStorage
from tests.benchmarks.bench_step import smooth_pictures

K, BATCH, SIDE, WINDOW = 16, 64, 128, 4


@dataclass(frozen=True)
class Measurement:
    """Result of one training."""

    images_per_second: float
    """Images per second of all workers together, with all modules active."""
    first_loss: float
    """Mean loss of the first window with all modules active."""
    loss: float
    """Mean loss over all pictures at the end."""


def worker(rank: int, world_size: int, folder: str, windows: int, together: bool) -> None:
    """Train in one process; the process with rank 0 writes the result to `folder`.

    With `together`, the processes form one DDP group. Otherwise each trains a model without the others, on batches of
    the same size as a worker's share of the global batch.
    """
    torch.set_num_threads(1)
    if together:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    pictures = (smooth_pictures(256, 3, SIDE, SIDE) * 255).to(torch.uint8)
    schedule = {"window": WINDOW, "min_iterations": 1, "final_iterations": 0}
    schedule["max_iterations"] = [WINDOW, windows * WINDOW]  # type: ignore[assignment]
    batch = BATCH if together else BATCH // world_size
    config = ClusteringConfig.model_validate({"k": [K], "batch_size": batch, "schedule": schedule})
    ends: list[float] = []
    losses: list[float] = []

    def record_window(progress: TrialProgress) -> None:
        if progress.iteration % WINDOW == 0 and len(progress.modules) == len(config.transforms):
            ends.append(time.perf_counter())
            losses.append(progress.loss)

    task = TrialTask(LocalStorage(folder), RunPaths("c", str(rank)), config, Trial(K, 0), [], 0)
    result = TrialTraining(task, ImageSet.of(pictures), torch.device("cpu")).run(record_window)
    seconds = median(after - before for before, after in pairwise(ends))
    if rank == 0:
        Path(folder, "measured.json").write_text(json.dumps([WINDOW * BATCH / seconds, losses[0], result.loss]))
    if together:
        dist.destroy_process_group()


def measure(world_size: int, windows: int, together: bool = True) -> Measurement:
    """Train with `world_size` workers, `together` or each without the others."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(worker, args=(world_size, folder, windows, together), nprocs=world_size)
        return Measurement(*json.loads(Path(folder, "measured.json").read_text()))


def main() -> None:
    """Train with one and with two workers, and print the speeds and the differences of the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--windows", type=int, default=8, help=f"number of timed windows of {WINDOW} iterations (default: 8)"
    )
    parser.add_argument(
        "--rounds", type=int, default=2, help="number of runs of each kind; the fastest counts (default: 2)"
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    os.environ.update(WORKER_ENVIRONMENT)  # the processes that are spawned inherit it
    kinds = {"one worker": (1, True), "two workers": (2, True), "two separate": (2, False)}
    runs: dict[str, list[Measurement]] = {name: [] for name in kinds}
    for _ in range(arguments.rounds):
        for name, (world_size, together) in kinds.items():
            runs[name].append(measure(world_size, arguments.windows, together))
            print(f"{name:<22} {runs[name][-1].images_per_second:6.1f} images/s", flush=True)
    one, two, separate = (max(results, key=lambda run: run.images_per_second) for results in runs.values())
    ratio = two.images_per_second / one.images_per_second
    ceiling = separate.images_per_second / one.images_per_second
    first = abs(two.first_loss - one.first_loss) / abs(one.first_loss)
    difference = abs(two.loss - one.loss) / abs(one.loss)
    print(f"throughput_ratio {ratio:.2f}; two separate processes reach {ceiling:.2f} on this machine")
    print(f"relative difference of the losses: {first:.1e} in the first window, {difference:.1e} at the end")
    if arguments.json:
        found = {
            "throughput_ratio": ratio,
            "machine_ratio": ceiling,
            "first_difference": first,
            "loss_difference": difference,
        }
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
