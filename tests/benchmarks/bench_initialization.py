"""What prototypes start from, random images or k-means++: views covered, and purity and loss of the identity stage.

    python tests/benchmarks/bench_initialization.py [--seeds 6]

on three made photo crawls (8 views, 25 % noise, 64 px, K = 12); needs ../shared. The last measured table is in
README.md beside this file.
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

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a file, Python looks beside it only

from pipeline.clustering.data.images import ImageSet, to_float
from pipeline.clustering.data.loader import BatchStream, EpochOrder, initial_images
from pipeline.clustering.model.build import build_method
from pipeline.config import ClusteringConfig, IngestConfig
from pipeline.ingest.images import decode_square
from pipeline.ingest.rejection import Rejected
from tests.benchmarks.bench_accuracy import CRAWL_SEEDS, SHARED, purity

K, SIDE, ITERATIONS, BATCH = 12, 64, 300, 64


def make_crawl(seed: int) -> tuple[Tensor, list[str]]:
    """(N, 3, 64, 64) uint8 and the view of each image, empty for noise."""
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
    """Views among the initial images; purity on the views and mean loss after the stage without transformations."""
    initial = initial_images(ImageSet.of(images), K, seed, how)
    chosen = [int((to_float(images) - image).abs().flatten(1).sum(1).argmin()) for image in initial]
    model = build_method(ClusteringConfig(k=[K], transforms=[], batch_size=BATCH), initial, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    stream = BatchStream(EpochOrder([len(images)], seed), BATCH)
    for iteration in range(ITERATIONS):
        optimizer.zero_grad()
        model.loss(to_float(images[stream.indices(iteration)])).loss.backward()
        optimizer.step()
    assignment = model.assign(to_float(images))
    shown = np.array([bool(view) for view in views])
    classes = np.unique(views, return_inverse=True)[1]
    found = purity(classes[shown], assignment.cluster_B.numpy()[shown])
    return len({views[i] for i in chosen} - {""}), found, float(assignment.loss_B.mean())


def main() -> None:
    """Print one row per crawl and kind of initialisation, means over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6, help="runs per row [6]")
    arguments = parser.parse_args()
    if not SHARED.exists():
        sys.exit(f"needs {SHARED}, which is not there")
    print("| crawl | initialization | views covered | purity | loss |\n|---|---|---|---|---|")
    for crawl in CRAWL_SEEDS:
        images, views = make_crawl(crawl)
        for how in ("random", "k-means++"):
            rows = [identity_stage(images, views, how, seed) for seed in range(arguments.seeds)]
            covered, found, loss = np.mean(rows, axis=0)
            print(f"| {crawl} | {how} | {covered:.1f} of 8 | {found:.2f} | {loss:.0f} |", flush=True)


if __name__ == "__main__":
    main()
