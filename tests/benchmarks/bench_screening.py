"""Accuracy of screening: every image of a finished run, scored with screening, as in training, and without it.

    python tests/benchmarks/bench_screening.py --workspace DIR --collection NAME [--strides 2,4,8]

The script needs a finished run of the collection; `bench_accuracy.py crawls-64` creates some. Screening scores all
prototypes on every n-th pixel in both directions, and only the best three on all pixels, so it may rule out the best
prototype.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script, this file can only import from its own folder

from pipeline.clustering.checkpoint import load_method
from pipeline.clustering.data.images import decode_shard, to_float
from pipeline.clustering.model import dti
from pipeline.clustering.trial import Trial
from pipeline.paths import RunPaths
from pipeline.shards import complete_crawls, shard_keys
from pipeline.storage import LocalStorage
from tests.benchmarks.bench_accuracy import last_run


def main() -> None:
    """Print one row per stride."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", required=True, help="workspace of the run")
    parser.add_argument("--collection", required=True, help="name of the collection")
    parser.add_argument("--strides", default="2,4,8", help="values of n (default: 2,4,8)")
    arguments = parser.parse_args()
    storage = LocalStorage(str(Path(arguments.workspace).absolute()))
    run = last_run(Path(storage.uri(arguments.collection)))
    if run is None:
        sys.exit(
            f"{storage.uri(arguments.collection)} has no finished run; run bench_accuracy.py crawls-64 to create some"
        )
    kept = json.loads((run / "run.json").read_text())["selected"]
    paths = RunPaths(arguments.collection, run.name)
    method = load_method(storage, paths.checkpoint(Trial(kept["k"], kept["seed"]).name))
    keys = shard_keys(complete_crawls(storage, arguments.collection))
    images = torch.from_numpy(np.concatenate([decode_shard(storage, key) for key in keys]))
    dti.SMALLEST_SCREEN_PX = 1  # screen also where training would not
    print("| every n-th pixel | other prototype | responsibility lost | largest loss error, nats |\n|---|---|---|---|")
    for stride in map(int, arguments.strides.split(",")):
        changed, lost, worst = 0, 0.0, 0.0
        for batch in to_float(images).split(64):
            with torch.no_grad():
                method.screen_stride = stride
                inputs = (method.canvas(), batch, method.predict(batch), method.log_prior())
                screened = method._training_scores(*inputs)
                full = method._all_scores(*inputs[:3]) + inputs[3]
            gamma = method.responsibilities(full)
            changed += int((screened.argmax(1) != full.argmax(1)).sum())
            lost += float(gamma[screened == -torch.inf].sum())
            worst = max(worst, float((method.losses(screened) - method.losses(full)).abs().max()))
        print(f"| {stride} | {changed} of {len(images)} images | {lost / len(images):.2e} | {worst:.3f} |", flush=True)


if __name__ == "__main__":
    main()
