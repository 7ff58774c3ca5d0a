"""Two workers of one thread each against one: images per second at the same global batch, and the same result.

    python tests/benchmarks/bench_scaling.py [--json FILE]

Each is the training of the product itself, in processes of their own under DDP with gloo, on the same pictures with all
modules active; they take turns. The last measured table is in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
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

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a file, Python looks beside it only

from pipeline.clustering.data.images import ImageSet
from pipeline.clustering.heap import return_large_blocks
from pipeline.clustering.training import TrialTraining, Window
from pipeline.clustering.trial import Trial
from pipeline.clustering.workers import connected
from pipeline.config import ClusteringConfig
from pipeline.storage import LocalStorage
from tests.benchmarks.bench_step import smooth_pictures

K, BATCH, SIDE, WINDOW = 16, 64, 128, 4


@dataclass(frozen=True)
class Measured:
    """One run of some workers."""

    images_per_second: float
    first_loss: float
    """Mean over the first window with all modules."""
    loss: float
    """Over all pictures, in the end."""


def worker(rank: int, world_size: int, folder: str, windows: int, together: bool) -> None:
    """Body of one process; the first writes what it measured."""
    torch.set_num_threads(1)
    return_large_blocks()
    if together:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    torch.manual_seed(0)
    pictures = (smooth_pictures(256, 3, SIDE, SIDE) * 255).to(torch.uint8)
    schedule = {"window": WINDOW, "min_iterations": 1, "final_iterations": 0}
    schedule["max_iterations"] = [WINDOW, WINDOW, windows * WINDOW]  # type: ignore[assignment]
    batch = BATCH if together else BATCH // world_size
    config = ClusteringConfig.model_validate({"k": [K], "batch_size": batch, "schedule": schedule})
    ends: list[float] = []
    losses: list[float] = []

    def note_the_end(window: Window) -> None:
        if window.iteration % WINDOW == 0 and len(window.modules) == len(config.transforms):
            ends.append(time.perf_counter())
            losses.append(window.loss)

    with connected(60.0):
        trained = TrialTraining(
            config,
            Trial(K, 0),
            ImageSet.of(pictures),
            LocalStorage(folder),
            f"{rank}.pt",
            f"{rank}-best.pt",
            torch.device("cpu"),
        )
        result = trained.run(note_the_end)
    seconds = median(after - before for before, after in pairwise(ends))
    if rank == 0:
        Path(folder, "measured.json").write_text(json.dumps([WINDOW * BATCH / seconds, losses[0], result.loss]))
    if together:
        dist.destroy_process_group()


def measure(world_size: int, windows: int, together: bool = True) -> Measured:
    """Train with so many workers; or one model each, of their part of the batch, as if there were nothing to share."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(worker, args=(world_size, folder, windows, together), nprocs=world_size)
        return Measured(*json.loads(Path(folder, "measured.json").read_text()))


def main() -> None:
    """Print both, side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=8, help=f"timed windows of {WINDOW} iterations [8]")
    parser.add_argument("--rounds", type=int, default=2, help="times that they take turns; the faster counts [2]")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    kinds = {"one worker": (1, True), "two workers": (2, True), "two that share nothing": (2, False)}
    runs: dict[str, list[Measured]] = {name: [] for name in kinds}
    for _ in range(arguments.rounds):
        for name, (world_size, together) in kinds.items():
            runs[name].append(measure(world_size, arguments.windows, together))
            print(f"{name:<22} {runs[name][-1].images_per_second:6.1f} images/s", flush=True)
    one, two, apart = (max(measured, key=lambda run: run.images_per_second) for measured in runs.values())
    ratio = two.images_per_second / one.images_per_second
    ceiling = apart.images_per_second / one.images_per_second
    first = abs(two.first_loss - one.first_loss) / abs(one.first_loss)
    difference = abs(two.loss - one.loss) / abs(one.loss)
    print(f"throughput_ratio {ratio:.2f}, of the {ceiling:.2f} that this machine's cores reach without each other")
    print(f"losses differ by {first:.1e} of their size in the first window, by {difference:.1e} in the end")
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
