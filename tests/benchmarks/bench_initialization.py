"""Initialisation of prototypes by random images or k-means++: covered views, and purity and loss of the identity stage.

    python tests/benchmarks/bench_initialization.py [--seeds 6]

The script needs ../shared and uses three synthetic photo crawls (8 views, 25 % noise, 64 px, K = 12). README.md beside
this file has the last measured table.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script, this file can only import from its own folder

from pipeline.clustering.data.images import ImageSet, to_float
from pipeline.clustering.data.loader import BatchStream, EpochOrder, initial_images
from pipeline.clustering.model.build import build_method
from pipeline.config import ClusteringConfig, IngestConfig
from pipeline.ingest.images import decode_square
from pipeline.ingest.rejection import Rejected
from tests.benchmarks.bench_accuracy import CRAWL_SEEDS, SHARED, purity

K, SIDE, ITERATIONS, BATCH = 12, 64, 300, 64


def make_crawl(seed: int) -> tuple[Tensor, list[str]]:
    """Create a synthetic crawl; return its images (N, 3, 64, 64), uint8, and the view of each, empty for noise."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(SHARED / "tools/make_crawl.py"), "--photos", str(SHARED / "data/photos")]
        subprocess.run([*command, "--n", "400", "--seed", str(seed), "--out", folder], check=True, capture_output=True)
        with (Path(folder) / "labels.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["kind"] in {"view", "noise"}]
        images, views = [], []
        for row in rows:
            (path,) = Path(folder).glob(f"*/{row['file']}")
            try:
                images.append(decode_square(path.read_bytes(), IngestConfig(image_size=SIDE)).pixels)
            except Rejected:
                continue
            views.append(row["view"] if row["kind"] == "view" else "")
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()), views


def identity_stage(images: Tensor, views: list[str], how: str, seed: int) -> tuple[int, float, float]:
    """Train the stage without transformations.

    Returns the number of views among the initial images, the purity of the images that show a view, and the mean loss.
    """
    initial = initial_images(ImageSet.of(images), K, seed, how)
    nearest = [int((to_float(images) - image).abs().flatten(1).sum(1).argmin()) for image in initial]
    model = build_method(ClusteringConfig(k=[K], transforms=[], batch_size=BATCH), initial, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    stream = BatchStream(EpochOrder([len(images)], seed), BATCH)
    for iteration in range(ITERATIONS):
        optimizer.zero_grad()
        model.loss(to_float(images[stream.indices(iteration)])).loss.backward()
        optimizer.step()
    assignment = model.assign(to_float(images))
    is_view = np.array([bool(view) for view in views])
    classes = np.unique(views, return_inverse=True)[1]
    view_purity = purity(classes[is_view], assignment.cluster_B.numpy()[is_view])
    return len({views[i] for i in nearest} - {""}), view_purity, float(assignment.loss_B.mean())


def main() -> None:
    """Print one row per crawl and initialisation, with means over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6, help="number of runs per row (default: 6)")
    arguments = parser.parse_args()
    if not SHARED.exists():
        sys.exit(f"{SHARED} does not exist; it must contain the photographs and make_crawl.py")
    print("| crawl | initialization | views covered | purity | loss |\n|---|---|---|---|---|")
    for crawl in CRAWL_SEEDS:
        images, views = make_crawl(crawl)
        for how in ("random", "k-means++"):
            rows = [identity_stage(images, views, how, seed) for seed in range(arguments.seeds)]
            covered, mean_purity, loss = np.mean(rows, axis=0)
            print(f"| {crawl} | {how} | {covered:.1f} of 8 | {mean_purity:.2f} | {loss:.0f} |", flush=True)


if __name__ == "__main__":
    main()
