"""Time and memory of a training step: the dense algorithm of the paper, and the implementation of the pipeline.

    python tests/benchmarks/bench_step.py --case photo-k40 [--method dti-kmeans] [--threads 2] [--json FILE]

One after the other, each path (`dense`, and `product` for the pipeline) runs in a separate process on the same images
with all modules active. The images are the digits of ../shared/data/mnist-test for mnist-k10, and random pictures for
the other cases. Absolute times depend on the load of the machine: compare only ratios from one run. README.md beside
this file has the last measured table.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script, this file can only import from its own folder

from pipeline.clustering.data.loader import BatchStream, EpochOrder
from pipeline.clustering.model.build import build_method
from pipeline.clustering.workers import WORKER_ENVIRONMENT
from pipeline.config import ClusteringConfig
from tests.benchmarks.dense_step import DensePrototypes

DIGITS = Path(__file__).parents[3] / "shared/data/mnist-test/t10k-images-idx3-ubyte.gz"
PHOTO = {"shape": (3, 128, 128), "transforms": ["color", "projective"], "batch": 64, "dense_batch": 64}
DIGIT = {"shape": (1, 28, 28), "transforms": ["affine", "morphological", "tps"], "batch": 128, "dense_batch": 128}
CASES: dict[str, dict[str, Any]] = {
    "photo-k40": {**PHOTO, "k": 40},
    # K is four times as large, so the dense path gets a quarter of the images; otherwise it would need 43 GiB. Images
    # per second stay comparable; with the full batch, the memory would be four times the measured one.
    "photo-k160": {**PHOTO, "k": 160, "dense_batch": 16},
    "mnist-k10": {**DIGIT, "k": 10},
}


def product_step(case: dict[str, Any], method: str, images: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """Return a function that runs one training iteration of the pipeline on a batch."""
    config = ClusteringConfig(k=[case["k"]], transforms=case["transforms"], batch_size=case["batch"], method=method)
    model = build_method(config, images[: case["k"]], seed=0)
    model.activate(len(config.predicted), learn_variances=config.is_mixture)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step(batch: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        output = model.loss(batch)
        output.loss.backward()
        optimizer.step()

    return step


def dense_step(case: dict[str, Any], method: str, images: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """Return a function that runs one training iteration of the paper's algorithm, literally, on a batch."""
    model = DensePrototypes(images[: case["k"]], case["transforms"], gmm=method == "dti-gmm")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(batch: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()

    return step


LEAST_ITERATIONS = 5
"""Minimum number of timed iterations."""
PATHS = {"dense": dense_step, "product": product_step}


def smooth_pictures(n: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Return random pictures (n, C, H, W) in [0, 1] with large shapes; noise would make all prototypes equally bad."""
    coarse = torch.rand(n, channels, 6, 6)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


def digits() -> torch.Tensor:
    """Return the images of MNIST's test split: (N, 1, 28, 28) in [0, 1]."""
    data = gzip.decompress(DIGITS.read_bytes())
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=16).reshape(-1, 1, 28, 28) / np.float32(255))


def measure(path: str, case: dict[str, Any], method: str, threads: int, shortest_s: float) -> dict[str, float]:
    """Return the seconds of the fastest iteration, images per second, and the peak memory of this process.

    The fastest iteration counts, because other programs on the machine can only make an iteration slower. After one
    iteration to warm up, iterations are timed for at least `shortest_s` seconds, so that short ones are as likely to
    run undisturbed as long ones, and at least `LEAST_ITERATIONS` of them.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images = digits() if case["shape"][0] == 1 else smooth_pictures(2 * case["k"], *case["shape"])
    step = PATHS[path](case, method, images)
    batch = case["dense_batch" if path == "dense" else "batch"]
    stream = BatchStream(EpochOrder([len(images)], seed=0), batch)
    step(images[stream.indices(0)])
    seconds: list[float] = []
    while len(seconds) < LEAST_ITERATIONS or sum(seconds) < shortest_s:
        started = time.perf_counter()
        step(images[stream.indices(len(seconds) + 1)])
        seconds.append(time.perf_counter() - started)
    fastest = min(seconds)
    return {
        "seconds_per_iteration": fastest,
        "images_per_second": batch / fastest,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
    }


def main() -> None:
    """Run both paths, and print their results and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="photo-k40", help="images, K and modules (default: photo-k40)")
    parser.add_argument(
        "--method", choices=["dti-gmm", "dti-kmeans"], default="dti-gmm", help="clustering method (default: dti-gmm)"
    )
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads (default: 2)")
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="minimum time to measure a path in each round (default: 15)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=2,
        help="number of rounds in which both paths run; the fastest counts (default: 2)",
    )
    parser.add_argument("--path", choices=PATHS, help="measure only this path, in this process, and print JSON")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    if arguments.path:
        case = CASES[arguments.case]
        found = measure(arguments.path, case, arguments.method, arguments.threads, arguments.seconds)
        print(json.dumps(found))
        return
    if arguments.case == "mnist-k10" and not DIGITS.exists():
        sys.exit(f"mnist-k10 needs the digits in {DIGITS}, which does not exist")
    runs = [("dense", arguments.case), ("product", arguments.case)]
    if arguments.case == "photo-k160":
        runs.append(("product", "photo-k40"))
    best: dict[tuple[str, str], dict[str, float]] = {}
    for path, case_name in arguments.rounds * runs:
        command = [sys.executable, __file__, "--path", path, "--case", case_name, "--method", arguments.method]
        command += ["--threads", str(arguments.threads), "--seconds", str(arguments.seconds)]
        done = subprocess.run(
            command, env=os.environ | WORKER_ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout)
        print(
            f"{path:<8} {case_name:<10} {found['seconds_per_iteration']:8.3f} s/iteration  "
            f"{found['images_per_second']:8.1f} images/s  {found['peak_memory_bytes'] / 2**30:6.2f} GiB",
            flush=True,
        )
        key = (path, case_name)
        if key not in best or found["seconds_per_iteration"] < best[key]["seconds_per_iteration"]:
            best[key] = found
    dense, product = (best[path, arguments.case] for path in ("dense", "product"))
    result = {
        "case": arguments.case,
        "method": arguments.method,
        "threads": arguments.threads,
        "dense": dense,
        "product": product,
        "throughput_ratio": product["images_per_second"] / dense["images_per_second"],
        "memory_ratio": product["peak_memory_bytes"] / dense["peak_memory_bytes"],
    }
    print(f"throughput_ratio {result['throughput_ratio']:.2f}   memory_ratio {result['memory_ratio']:.3f}")
    if arguments.case == "photo-k160":
        seconds = best["product", "photo-k40"]["seconds_per_iteration"]
        result["time_ratio_to_k40"] = product["seconds_per_iteration"] / seconds
        print(f"time per iteration, ratio of K = 160 to K = 40: {result['time_ratio_to_k40']:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
