"""Decoded shards on a real local Ray."""

from __future__ import annotations

import uuid
from collections import Counter
from pathlib import Path

import pytest

from pipeline.clustering.data.image_store import ImageStore, open_images
from pipeline.errors import StorageError
from pipeline.paths import CrawlPaths
from pipeline.storage import LocalStorage
from tests.support.made_collection import BLUE, GREEN, RED, make_crawl

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Noting(LocalStorage):
    """Leaves a file for each read, in whatever process that is."""

    def read_bytes(self, key: str) -> bytes:
        note = Path(self.root) / "reads" / f"{Path(key).stem}.{uuid.uuid4().hex}"
        note.parent.mkdir(exist_ok=True)
        note.touch()
        return super().read_bytes(key)

    def reads(self) -> Counter[str]:
        return Counter(note.name.partition(".")[0] for note in (Path(self.root) / "reads").glob("*"))


def test_images_that_do_not_fit_in_memory_are_counted_once_for_all_workers(tmp_path: Path) -> None:
    import ray

    storage = Noting(str(tmp_path))
    shards = [[("r1", RED), ("g1", GREEN)], [("r2", RED)], [("b1", BLUE), ("r3", RED), ("g2", GREEN)]]
    make_crawl(storage, "c", "x", shards)
    keys = [CrawlPaths("c", "x").shard(index) for index in range(3)]
    store = ray.remote(ImageStore).options(num_cpus=0).remote(2**20)
    image_bytes = 3 * 16 * 16
    for _ in range(2):
        images = open_images(store, storage, keys, 6 * image_bytes, 3 * image_bytes)
        assert (images.sizes, images.resident_images) == ([2, 1, 3], 3)
    # The first is decoded as well, to see what shape images have.
    assert storage.reads() == {"shard-000000": 2, "shard-000001": 1, "shard-000002": 1}
    storage.delete(keys[1])
    assert open_images(store, storage, keys, 6 * image_bytes, 3 * image_bytes).sizes == [2, 1, 3]
    with pytest.raises(StorageError, match=r"shard-000009\.tar"):
        open_images(store, storage, [*keys, CrawlPaths("c", "x").shard(9)], 6 * image_bytes, 3 * image_bytes)
