"""Batches per second of the loader, in memory and streamed, against what a training step needs.

    python tests/benchmarks/bench_loader.py [--images 10000] [--json FILE]

Shards of 128 px crops are read by one worker through Ray, as training reads them: decoded by tasks, shared through the
object store, drawn by index. In memory they all fit; streamed, a quarter of them does. The first epoch decodes; the
later ones are what training sees. The last measured table is in README.md beside this file.
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

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a file, Python looks beside it only

from pipeline.clustering.data.loader import BatchStream, EpochOrder, Loader
from pipeline.config import IngestConfig
from pipeline.ingest.images import encode
from pipeline.session import connect_ray, ray_session
from pipeline.shards import Sample, publish_shard
from pipeline.storage import LocalStorage
from tests.benchmarks.bench_step import smooth_pictures

SIDE, PER_SHARD, BATCH, EPOCHS = 128, 256, 64, 3


def make_shards(storage: LocalStorage, n_images: int) -> list[str]:
    """Shards of smooth pictures with some noise, which makes JPEGs of the size of photographs."""
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
    """Images per second in each epoch."""
    import ray

    from pipeline.clustering.data.image_store import ImageStore, kept_bytes, open_images

    decoded = len(keys) * PER_SHARD * 3 * SIDE**2
    store = ray.remote(ImageStore).options(num_cpus=0).remote(min(kept_bytes(), int(part_in_memory * decoded)))
    started = time.perf_counter()
    images = open_images(store, storage, keys, decoded, int(part_in_memory * decoded))
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
    """Print a row per mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="[10000]")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder, ray_session():
        storage = LocalStorage(folder)
        keys = make_shards(storage, arguments.images)
        connect_ray()
        print("| mode | first epoch, images/s | later epochs, images/s |\n|---|---|---|")
        for mode, part in (("in memory", 1.0), ("streamed, a quarter in memory", 0.25)):
            first, *later = measure(storage, keys, part)
            found[mode] = {"first": first, "later": later}
            print(f"| {mode} | {first:,.0f} | {max(later):,.0f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
