"""Time and memory of a training step: the dense algorithm and the product's, one after the other, each on its own.

    python tests/benchmarks/bench_step.py --case photo-k40 [--method dti-kmeans] [--threads 2] [--json FILE]

Each path runs in a process of its own, on the same random images, with all modules active. Machines are noisy: only
the ratios of one run mean anything. The last measured table is in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a file, Python looks beside it only

from pipeline.clustering.build import build_method
from pipeline.clustering.loader import BatchStream
from pipeline.config import ClusteringConfig
from tests.benchmarks.dense_step import DensePrototypes

CASES = {
    "photo-k40": {"k": 40, "shape": (3, 128, 128), "transforms": ["color", "projective"], "batch": 64},
    "photo-k160": {"k": 160, "shape": (3, 128, 128), "transforms": ["color", "projective"], "batch": 64},
}


def product_step(case: dict[str, Any], method: str, images: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """One iteration of training as the product does it."""
    config = ClusteringConfig(k=[case["k"]], transforms=case["transforms"], batch_size=case["batch"], method=method)
    model = build_method(config, images[: case["k"]], seed=0)
    model.activate(len(case["transforms"]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step(batch: torch.Tensor) -> None:
        output = model.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        optimizer.step()

    return step


def dense_step(case: dict[str, Any], method: str, images: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """One iteration of training as the paper's algorithm reads."""
    model = DensePrototypes(images[: case["k"]], case["transforms"], gmm=method == "dti-gmm")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(batch: torch.Tensor) -> None:
        loss = model.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


PATHS = {"dense": dense_step, "product": product_step}


def measure(path: str, case: dict[str, Any], method: str, threads: int, iterations: int) -> dict[str, float]:
    """Median seconds per iteration after one to warm up, images per second, and peak memory of this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    # Smooth random pictures: noise would make all prototypes equally bad.
    coarse = torch.rand(2 * case["k"], case["shape"][0], 6, 6)
    images = torch.nn.functional.interpolate(coarse, size=case["shape"][1:], mode="bicubic").clamp(0, 1)
    step = PATHS[path](case, method, images)
    stream = BatchStream(len(images), case["batch"], seed=0)
    seconds = []
    for iteration in range(iterations + 1):
        started = time.perf_counter()
        step(images[stream.indices(iteration)])
        seconds.append(time.perf_counter() - started)
    median = sorted(seconds[1:])[iterations // 2]
    return {
        "seconds_per_iteration": median,
        "images_per_second": case["batch"] / median,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
    }


def main() -> None:
    """Run both paths and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="photo-k40")
    parser.add_argument("--method", choices=["dti-gmm", "dti-kmeans"], default="dti-gmm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=5, help="timed iterations of each path [5]")
    parser.add_argument("--path", choices=PATHS, help="measure this path alone, in this process, and print JSON")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    if arguments.path:
        case = CASES[arguments.case]
        found = measure(arguments.path, case, arguments.method, arguments.threads, arguments.iterations)
        print(json.dumps(found))
        return
    # The dense path needs memory in proportion to K, far more than most machines have at K = 160.
    paths = ["dense", "product"] if arguments.case == "photo-k40" else ["product"]
    result: dict[str, Any] = {"case": arguments.case, "method": arguments.method, "threads": arguments.threads}
    for path in paths:
        command = [sys.executable, __file__, "--path", path, "--case", arguments.case, "--method", arguments.method]
        command += ["--threads", str(arguments.threads), "--iterations", str(arguments.iterations)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result[path] = found = json.loads(done.stdout)
        print(
            f"{path:<8} {found['seconds_per_iteration']:8.3f} s/iteration  {found['images_per_second']:8.1f} images/s  "
            f"{found['peak_memory_bytes'] / 2**30:6.2f} GiB"
        )
    if len(paths) > 1:
        result["throughput_ratio"] = result["product"]["images_per_second"] / result["dense"]["images_per_second"]
        result["memory_ratio"] = result["product"]["peak_memory_bytes"] / result["dense"]["peak_memory_bytes"]
        print(f"throughput_ratio {result['throughput_ratio']:.2f}   memory_ratio {result['memory_ratio']:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
