"""What the parts of training contribute on synthetic photo crawls: purity, loss and time of whole trainings.

    python tests/benchmarks/bench_training.py [--crawls easy,hard] [--seeds 0,1] [--json FILE]

The script needs ../shared (photographs, make_crawl.py). Each row is the default configuration with one part changed; a
row has one value for each seed of crawl and training. Purity is the share of the images of views whose cluster shows
mostly their view; training never sees the views. Each training runs in a process of its own with one thread; with two
seeds, two run at the same time. README.md beside this file has the last measured table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script, this file can only import from its own folder

from pipeline.clustering.data.images import ImageSet, to_float
from pipeline.clustering.training import TrialTraining
from pipeline.clustering.trial import Trial, TrialTask
from pipeline.clustering.workers import WORKER_ENVIRONMENT
from pipeline.config import ClusteringConfig
from pipeline.paths import RunPaths
from pipeline.storage import LocalStorage
from tests.benchmarks.bench_encoder import SHARED, make_images, purity

IMAGE_SIZE = 64
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "prototypes start from random images": {"initialization": "random"},
    "no prototype restarts": {"restart_below": 0},
    "no colours": {"transforms": ["projective"]},
}


@dataclass(frozen=True)
class Crawl:
    """A kind of synthetic crawl."""

    files: int
    k: int
    options: tuple[str, ...]
    """Options of make_crawl.py."""


CRAWLS = {
    "easy": Crawl(480, 12, ("--views", "8", "--noise", "0.25")),
    "hard": Crawl(800, 30, ("--views", "0", "--noise", "0.5", "--strength", "2")),
}


def train(crawl: Crawl, variant: str, seed: int) -> dict[str, Any]:
    """Train once, and return purity, loss, iterations and seconds."""
    torch.set_num_threads(1)
    config = ClusteringConfig.model_validate({"k": [crawl.k], "checkpoint_every_s": 1e9, **VARIANTS[variant]})
    with tempfile.TemporaryDirectory() as folder:
        images, views = make_images(Path(folder) / "crawl", IMAGE_SIZE, seed, crawl.files, crawl.options)
        task = TrialTask(LocalStorage(folder), RunPaths("c", "run"), config, Trial(crawl.k, seed), [], 0)
        training = TrialTraining(task, ImageSet.of(images), torch.device("cpu"))
        result = training.run()
        training.method.eval()
        clusters = torch.cat([training.method.assign(to_float(part)).cluster_B for part in images.split(256)])
    found = {"purity": purity(clusters, views), "loss": result.loss}
    return {**found, "iterations": result.iterations, "seconds": result.seconds}


def run_variant(crawl: str, variant: str, seed: int) -> dict[str, Any]:
    """Call `train` in a process of its own."""
    command = [sys.executable, __file__, "--one", crawl, variant, str(seed)]
    done = subprocess.run(command, env=os.environ | WORKER_ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    """Train every variant with every seed, and print a row for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crawls", default="easy,hard", help="kinds of crawls (default: easy,hard)")
    parser.add_argument("--seeds", default="0,1", help="seeds of crawl and training (default: 0,1)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="rows of the table (default: all)")
    parser.add_argument("--one", nargs=3, metavar=("CRAWL", "VARIANT", "SEED"), help="train once, print JSON")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    if not (SHARED / "tools" / "make_crawl.py").exists():
        sys.exit(f"{SHARED} does not exist; it must contain the photographs and make_crawl.py")
    if arguments.one:
        crawl, variant, seed = arguments.one
        print(json.dumps(train(CRAWLS[crawl], variant, int(seed))))
        return
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    results: dict[str, list[dict[str, Any]]] = {}
    print("| crawl | variant | purity | loss | iterations | seconds |\n|---|---|---|---|---|---|")
    for crawl in arguments.crawls.split(","):
        for variant in arguments.variants.split(","):
            with ThreadPoolExecutor(len(seeds)) as pool:
                runs = list(pool.map(lambda seed, c=crawl, v=variant: run_variant(c, v, seed), seeds))
            results[f"{crawl}: {variant}"] = runs
            formats = {"purity": ".3f", "loss": ",.0f", "iterations": ",d", "seconds": ".0f"}
            columns = [", ".join(format(run[name], spec) for run in runs) for name, spec in formats.items()]
            print(f"| {crawl} | {variant} | {' | '.join(columns)} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
