"""What screening misses: every image of a finished run scored with it, as in training, and without it.

    python tests/benchmarks/bench_screening.py --workspace DIR --collection NAME [--strides 2,4,8]

needs a run of that collection, such as bench_accuracy.py leaves (crawls-64). Screening looks at every n-th pixel in
both directions and scores the best three prototypes in full; it may rule out the right one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a file, Python looks beside it only

from pipeline.clustering.checkpoint import load_method
from pipeline.clustering.data.images import decode_shard, to_float
from pipeline.clustering.model import dti
from pipeline.clustering.trial import Trial
from pipeline.paths import RunPaths
from pipeline.shards import complete_crawls, shard_keys
from pipeline.storage import LocalStorage
from tests.benchmarks.bench_accuracy import last_run


def main() -> None:
    """Print a row per stride."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--collection", required=True)
    parser.add_argument("--strides", default="2,4,8", help="[2,4,8]")
    arguments = parser.parse_args()
    storage = LocalStorage(str(Path(arguments.workspace).absolute()))
    run = last_run(Path(storage.uri(arguments.collection)))
    if run is None:
        sys.exit(f"{storage.uri(arguments.collection)}: no finished run; bench_accuracy.py crawls-64 makes some")
    kept = json.loads((run / "run.json").read_text())["selected"]
    paths = RunPaths(arguments.collection, run.name)
    method = load_method(storage, paths.checkpoint(Trial(kept["k"], kept["seed"]).name))
    keys = shard_keys(complete_crawls(storage, arguments.collection))
    images = torch.from_numpy(np.concatenate([decode_shard(storage, key) for key in keys]))
    dti.SMALLEST_SCREEN_PX = 1  # also where training would not screen
    print("| every n-th pixel | other prototype | responsibility lost | loss off by at most, nats |\n|---|---|---|---|")
    for stride in map(int, arguments.strides.split(",")):
        changed, lost, worst = 0, 0.0, 0.0
        for batch in to_float(images).split(64):
            with torch.no_grad():
                method.screen_stride = stride
                known = (method.canvas(), batch, method._predict(batch), method.log_prior())
                screened = method._training_scores(*known)
                full = method._all_scores(*known[:3]) + known[3]
            gamma = method.responsibilities(full)
            changed += int((screened.argmax(1) != full.argmax(1)).sum())
            lost += float(gamma[screened == -torch.inf].sum())
            worst = max(worst, float((method.losses(screened) - method.losses(full)).abs().max()))
        print(f"| {stride} | {changed} of {len(images)} images | {lost / len(images):.2e} | {worst:.3f} |", flush=True)


if __name__ == "__main__":
    main()
