"""Encoders and the size of their input: time per iteration, loss at equal iterations and at equal time, and purity.

    python tests/benchmarks/bench_encoder.py [--image-size 64] [--seeds 100,101] [--json FILE]

The script needs ../shared (photographs, make_crawl.py). A crawl of 8 views, in which a quarter of the images is noise,
is trained into 12 prototypes with each encoder: the same seed, batches and schedule, which has fixed lengths. Purity is
the share of the images of views whose cluster shows mostly their view; training never sees the views. Each training
runs in a process of its own with one thread. README.md beside this file has the last measured table.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script, this file can only import from its own folder

from pipeline.clustering.data.images import ImageSet, to_float
from pipeline.clustering.training import TrialTraining
from pipeline.clustering.trial import Trial, TrialProgress, TrialTask
from pipeline.clustering.workers import WORKER_ENVIRONMENT
from pipeline.config import ClusteringConfig, IngestConfig
from pipeline.ingest.images import decode_square
from pipeline.paths import RunPaths
from pipeline.storage import LocalStorage

SHARED = Path(__file__).parents[3] / "shared"
VIEWS, FILES, K, WINDOW = 8, 480, 12, 60
STAGES = (600, 240)
"""Iterations with prototypes and fitted colours alone, with projective transformations, and with learned variances."""


def make_images(
    folder: Path, image_size: int, seed: int, files: int = FILES, options: Sequence[str] = ("--views", str(VIEWS))
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images (N, 3, H, W) uint8 of a synthetic crawl, and the view of each, -1 for noise."""
    command = [sys.executable, str(SHARED / "tools" / "make_crawl.py"), "--photos", str(SHARED / "data" / "photos")]
    command += ["--out", str(folder), "--tag", "t", "--n", str(files), "--seed", str(seed), *options]
    subprocess.run([*command, "--bad", "0", "--duplicates", "0"], check=True, stdout=subprocess.DEVNULL)
    images, views = [], []
    names: dict[str, int] = {}
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            data = (folder / "t" / row["file"]).read_bytes()
            images.append(decode_square(data, IngestConfig(image_size=image_size)).pixels.transpose(2, 0, 1))
            views.append(names.setdefault(row["view"], len(names)) if row["kind"] == "view" else -1)
    return torch.from_numpy(np.stack(images)), torch.tensor(views)


def purity(clusters: torch.Tensor, views: torch.Tensor) -> float:
    """Return the share of the images of views whose cluster shows mostly their view."""
    known = views >= 0
    largest = [views[known][clusters[known] == c].bincount().max() for c in clusters[known].unique()]
    return float(sum(largest) / known.sum())


def train(image_size: int, seed: int, encoder: str, encoder_px: int) -> dict[str, Any]:
    """Train once; return loss by iteration and seconds, and the purity at the end."""
    torch.set_num_threads(1)
    schedule = {"window": WINDOW, "min_iterations": 1, "max_iterations": list(STAGES), "final_iterations": 0}
    values = {"k": [K], "encoder": encoder, "encoder_px": encoder_px, "schedule": {**schedule, "patience": 10**6}}
    config = ClusteringConfig.model_validate({**values, "checkpoint_every_s": 1e9})
    history: list[tuple[int, float, float]] = []

    def note(progress: TrialProgress) -> None:
        if progress.iteration % WINDOW == 0:
            history.append((progress.iteration, progress.seconds, progress.loss))

    with tempfile.TemporaryDirectory() as folder:
        images, views = make_images(Path(folder) / "crawl", image_size, seed)
        task = TrialTask(LocalStorage(folder), RunPaths("c", "run"), config, Trial(K, seed), [], 0)
        training = TrialTraining(task, ImageSet.of(images), torch.device("cpu"))
        result = training.run(note)
        training.method.eval()
        clusters = torch.cat([training.method.assign(to_float(part)).cluster_B for part in images.split(256)])
    return {"history": history, "loss": result.loss, "purity": purity(clusters, views)}


def cases(image_size: int) -> list[tuple[str, int]]:
    """Return the encoders to compare, each with the side of its input: that of the paper first."""
    sides = [image_size, image_size // 2, image_size // 4]
    return [("resnet18", image_size), *(("resnet20", side) for side in sides if side >= 8)]


def main() -> None:
    """Train with each encoder and seed, and print a row for each encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=64, metavar="PX", help="side of the images (default: 64)")
    parser.add_argument("--seeds", default="100,101", help="seeds of crawl and training (default: 100,101)")
    parser.add_argument("--one", nargs=2, metavar=("ENCODER", "PX"), help="train once with this encoder, print JSON")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    if not (SHARED / "tools" / "make_crawl.py").exists():
        sys.exit(f"{SHARED} does not exist; it must contain the photographs and make_crawl.py")
    if arguments.one:
        print(json.dumps(train(arguments.image_size, seeds[0], arguments.one[0], int(arguments.one[1]))))
        return
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for encoder, px in cases(arguments.image_size):
            command = [sys.executable, __file__, "--one", encoder, str(px), "--seeds", str(seed)]
            command += ["--image-size", str(arguments.image_size)]
            done = subprocess.run(
                command, env=os.environ | WORKER_ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True
            )
            results.setdefault(f"{encoder} on {px} px", []).append(json.loads(done.stdout))
    print_table(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def print_table(results: dict[str, list[dict[str, Any]]]) -> None:
    """Print a row for each encoder, with one value for each seed."""
    seeds = range(len(next(iter(results.values()))))
    budget = [min(runs[seed]["history"][-1][1] for runs in results.values()) for seed in seeds]
    print("| encoder | s per iteration | loss at the end | loss after the seconds of the fastest | purity |")
    print("|---|---|---|---|---|")
    for name, runs in results.items():
        pace = [_pace(run["history"]) for run in runs]
        early = [_loss_after(run["history"], seconds) for run, seconds in zip(runs, budget, strict=True)]
        columns = [
            ", ".join(f"{value:.3f}" for value in pace),
            ", ".join(f"{run['loss']:,.0f}" for run in runs),
            ", ".join(f"{value:,.0f}" for value in early),
            ", ".join(f"{run['purity']:.3f}" for run in runs),
        ]
        print(f"| {name} | {' | '.join(columns)} |")


def _pace(history: list[list[float]]) -> float:
    """Return the median seconds per iteration with all modules."""
    last = [point for point in history if point[0] > STAGES[0]]
    return float(np.median([(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(last)]))


def _loss_after(history: list[list[float]], seconds: float) -> float:
    """Return the loss of the last window that ended after at most `seconds`."""
    return next((loss for _, at, loss in reversed(history) if at <= seconds), float("nan"))


if __name__ == "__main__":
    main()
