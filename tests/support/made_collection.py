"""Small collections with known clusters, written directly to storage, without the ingest stage."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from pipeline.clustering.checkpoint import CheckpointWriter, model_state
from pipeline.clustering.model.build import build_method
from pipeline.clustering.trial import ClusterRecord, HistoryPoint, StageRecord, TrialResult
from pipeline.config import ClusteringConfig
from pipeline.paths import CrawlPaths, RunPaths
from pipeline.records import SHARD_SCHEMA, Crawl
from pipeline.shards import Sample, write_shard
from pipeline.storage import LocalStorage, write_table

Color = tuple[int, int, int]
RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 40), (30, 40, 210), (255, 255, 255)


def plain(color: Color, side: int = 16) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return a picture of one colour: uint8 (side, side, 3)."""
    return np.broadcast_to(np.array(color, np.uint8), (side, side, 3)).copy()


def sample(image_id: str, color: Color, side: int = 16) -> Sample:
    """Return a sample of a shard: an image of one colour."""
    buffer = io.BytesIO()
    Image.fromarray(plain(color, side)).save(buffer, "JPEG", quality=95)
    return Sample(image_id, buffer.getvalue(), {})


def make_crawl(
    storage: LocalStorage,
    collection: str,
    crawl_id: str,
    shards: Sequence[Sequence[tuple[str, Color]]],
    labels: Mapping[str, str] = MappingProxyType({}),
) -> Crawl:
    """Write a crawl of images of one colour, and return it; its marker is not written.

    Args:
        shards: pairs of image id and colour, for each shard; each shard also receives one rejected record.
        labels: true classes of images, by image id.
    """
    paths = CrawlPaths(collection, crawl_id)
    for index, images in enumerate(shards):
        write_shard_at(storage, paths.shard(index), [sample(*image) for image in images])
        rows = [
            {
                "image_id": image_id,
                "status": "accepted",
                "source_uri": f"/photos/{image_id}.jpg",
                "caption": "café",
                "label": labels.get(image_id),
            }
            for image_id, _ in images
        ]
        rows.append({"status": "rejected", "reason": "not_an_image"})
        write_table(storage, paths.rows(index), pa.Table.from_pylist(rows, SHARD_SCHEMA))
    accepted = sum(len(images) for images in shards)
    rejected = {"not_an_image": len(shards)}
    return Crawl(
        collection, crawl_id, len(shards), accepted + len(shards), accepted, rejected, 16, f"digest-{crawl_id}"
    )


def write_shard_at(storage: LocalStorage, key: str, samples: Sequence[Sample]) -> None:
    """Write `samples` to storage as the tar `key`."""
    path = Path(storage.uri(key))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_shard(path, samples)


def make_trial(
    storage: LocalStorage, paths: RunPaths, config: ClusteringConfig, colors: Sequence[Color]
) -> TrialResult:
    """Write the checkpoint of a trial whose prototypes have the `colors` and whose transformations are the identity."""
    initial_KCHW = torch.tensor(colors).float()[:, :, None, None].expand(-1, -1, 16, 16) / 255
    method = build_method(config, initial_KCHW, seed=0, device_type="cpu")
    method.activate(len(config.predicted), learn_variances=config.is_mixture)
    result = trial_result(k=len(colors))
    CheckpointWriter(storage, paths.checkpoint(result.trial.name), print).finish(model_state(method, config))
    return result


def trial_result(k: int, windows: int = 3) -> TrialResult:
    """Return a result whose loss decreases by one in every window of ten iterations."""
    history = [HistoryPoint(10 * i, 100.0 - i, 1e-3, 1, 0, 0.5, 0.1) for i in range(1, windows + 1)]
    stages = [StageRecord([], 10 * windows, "converged")]
    clusters = [ClusterRecord(8, None if k == 1 else (index + 1) % k, 0.5) for index in range(k)]
    return TrialResult(k, 0, 100.0 - windows - k, 10 * windows, 640 * windows, 2.5, 1, stages, history, clusters)
