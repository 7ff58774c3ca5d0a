"""Images per second of the loader, in memory and streamed.

    python tests/benchmarks/bench_loader.py [--images 10000] [--json FILE]

One worker reads shards of 128 px crops through Ray, as in training: tasks decode them, the object store shares them,
and batches are drawn by index. In the mode "in memory" all images fit into memory, in the mode "streamed" a quarter of
them does. The first epoch includes decoding; most of training has the speed of the later ones. README.md beside this
file has the last measured table, and compares it with the speed of a training step.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script, this file can only import from its own folder

from pipeline.clustering.data.loader import BatchStream, EpochOrder, Loader
from pipeline.clustering.trial import Trial, TrialTask
from pipeline.config import ClusteringConfig, IngestConfig
from pipeline.ingest.images import encode
from pipeline.paths import RunPaths
from pipeline.session import connect_ray, ray_session
from pipeline.shards import Sample, publish_shard
from pipeline.storage import LocalStorage
from tests.benchmarks.bench_step import smooth_pictures

SIDE, PER_SHARD, BATCH, EPOCHS = 128, 256, 64, 3


def make_shards(storage: LocalStorage, n_images: int) -> list[str]:
    """Write shards of smooth pictures and return their keys.

    Some noise makes the JPEG files as large as those of photographs.
    """
    torch.manual_seed(0)
    pictures = smooth_pictures(PER_SHARD, 3, SIDE, SIDE) + 0.04 * torch.randn(PER_SHARD, 3, SIDE, SIDE)
    pixels = (pictures.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    quality = IngestConfig().jpeg_quality
    files = [encode(np.ascontiguousarray(picture), "jpeg", quality) for picture in pixels]
    keys = []
    for shard in range(-(-n_images // PER_SHARD)):
        keys.append(f"shard-{shard:06d}.tar")
        samples = [Sample(f"{shard:016x}{i:016x}", data, {}) for i, data in enumerate(files)]
        publish_shard(storage, keys[-1], samples)
    return keys


def measure(storage: LocalStorage, keys: list[str], part_in_memory: float) -> list[float]:
    """Return the images per second of each epoch."""
    import ray

    from pipeline.clustering.data.image_store import ImageStore, kept_bytes, open_images

    decoded = len(keys) * PER_SHARD * 3 * SIDE**2
    store = ray.remote(ImageStore).options(num_cpus=0).remote(min(kept_bytes(), int(part_in_memory * decoded)))
    started = time.perf_counter()
    config = ClusteringConfig(image_memory_gb=part_in_memory * decoded / 2**30)
    task = TrialTask(storage, RunPaths("c", "run"), config, Trial(2, 0), keys, decoded)
    images = open_images(store, task)
    loader = Loader(images, BatchStream(EpochOrder(images.sizes, 0, images.window), BATCH), torch.device("cpu"))
    per_epoch = len(images) // BATCH
    rates = []
    for epoch in range(EPOCHS):
        for iteration in range(per_epoch):
            loader.batch(epoch * per_epoch + iteration)
        rates.append(per_epoch * BATCH / (time.perf_counter() - started))
        started = time.perf_counter()
    loader.close()
    return rates


def main() -> None:
    """Print one row per mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="number of images (default: 10000)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    rates = {}
    with tempfile.TemporaryDirectory() as folder, ray_session():
        storage = LocalStorage(folder)
        keys = make_shards(storage, arguments.images)
        connect_ray()
        print("| mode | first epoch, images/s | later epochs, images/s |\n|---|---|---|")
        for mode, part in (("in memory", 1.0), ("streamed, a quarter in memory", 0.25)):
            first, *later = measure(storage, keys, part)
            rates[mode] = {"first": first, "later": later}
            print(f"| {mode} | {first:,.0f} | {max(later):,.0f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rates, indent=2) + "\n")


if __name__ == "__main__":
    main()
