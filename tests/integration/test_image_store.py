"""The store of decoded shards, on a real local Ray cluster."""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.clustering.data.image_store import ImageStore, open_images
from pipeline.clustering.trial import Trial, TrialTask
from pipeline.config import ClusteringConfig
from pipeline.errors import StorageError
from pipeline.paths import CrawlPaths, RunPaths
from pipeline.storage import LocalStorage
from tests.support.made_collection import BLUE, GREEN, RED, make_crawl

pytestmark = pytest.mark.usefixtures("ray_cluster")


IMAGE_BYTES = 3 * 16 * 16


class RecordingStorage(LocalStorage):
    """Storage that creates a file for each read, so that reads in all processes are counted."""

    def read_bytes(self, key: str) -> bytes:
        record = Path(self.root) / "reads" / f"{Path(key).stem}.{uuid.uuid4().hex}"
        record.parent.mkdir(exist_ok=True)
        record.touch()
        return super().read_bytes(key)

    def reads(self) -> Counter[str]:
        return Counter(record.name.partition(".")[0] for record in (Path(self.root) / "reads").glob("*"))


def test_images_that_do_not_fit_in_memory_are_counted_once_for_all_workers(tmp_path: Path) -> None:
    import ray

    storage = RecordingStorage(str(tmp_path))
    shards = [[("r1", RED), ("g1", GREEN)], [("r2", RED)], [("b1", BLUE), ("r3", RED), ("g2", GREEN)]]
    make_crawl(storage, "c", "x", shards)
    keys = [CrawlPaths("c", "x").shard(index) for index in range(3)]
    store = ray.remote(ImageStore).options(num_cpus=0).remote(2**20)
    config = ClusteringConfig(image_memory_gb=3 * IMAGE_BYTES / 2**30)
    task = TrialTask(storage, RunPaths("c", "run"), config, Trial(2, 0), keys, 6 * IMAGE_BYTES)
    for _ in range(2):
        images = open_images(store, task)
        assert (images.sizes, images.resident_images) == ([2, 1, 3], 3)
    # The first shard is also decoded, to get the shape of images.
    assert storage.reads() == {"shard-000000": 2, "shard-000001": 1, "shard-000002": 1}
    storage.delete(keys[1])
    assert open_images(store, task).sizes == [2, 1, 3]
    with pytest.raises(StorageError, match=r"shard-000009\.tar"):
        open_images(store, replace(task, shard_keys=[*keys, CrawlPaths("c", "x").shard(9)]))
