"""Shards → batches: the same number on every worker, in an order that depends on the seed alone.

The images of a run are decoded once per worker process and kept as uint8. Global batch i is a function of seed and i,
whatever the number of workers: each worker takes its part of it, and a resumed run continues at its iteration.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from pipeline.clustering.seeding import generator
from pipeline.errors import ClusteringError
from pipeline.shards import read_shard
from pipeline.storage import Storage

THUMBNAIL_PX = 16
"""Side of the images between which k-means++ measures distances."""


def load_images(storage: Storage, shard_keys: list[str], threads: int = 2) -> Tensor:
    """(N, C, H, W) uint8: the images of all shards, in order.

    Raises ClusteringError where shards are empty or hold images of different sizes.
    """

    def decode(key: str) -> list[np.ndarray]:
        return [sample.pixels().transpose(2, 0, 1) for sample in read_shard(storage, key)]

    with ThreadPoolExecutor(threads) as pool:
        shards = [shard for shard in pool.map(decode, shard_keys) if shard]
    if not shards:
        raise ClusteringError("no image was accepted: there is nothing to cluster; see the reasons in crawl.json")
    shapes = {image.shape for shard in shards for image in shard}
    if len(shapes) > 1:
        raise ClusteringError(f"the shards hold images of different shapes {sorted(shapes)}: expected one")
    return torch.from_numpy(np.stack([image for shard in shards for image in shard]))


def to_float(images_BCHW: Tensor) -> Tensor:
    """uint8 0..255 to [0, 1] in torch's default precision (float32)."""
    return images_BCHW.to(torch.get_default_dtype()) / 255


class BatchStream:
    """Endless batches: epochs of all images, each in a new order, one after the other without a gap.

    A batch may span two epochs, so every batch is full and every image is seen equally often, even where a batch is
    larger than the collection.

    Args:
        n_images: size of the collection.
        batch_size: images per global batch; divisible by `world_size`.
        seed: of the order.
        rank, world_size: this worker's place among the workers.
    """

    def __init__(self, n_images: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.n_images, self.batch_size, self.seed = n_images, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def indices(self, iteration: int) -> Tensor:
        """int64 (batch_size / world_size): this worker's images in global batch `iteration`."""
        local = self.batch_size // self.world_size
        start = iteration * self.batch_size + self.rank * local
        parts = []
        position, stop = start, start + local
        while position < stop:
            epoch, offset = divmod(position, self.n_images)
            taken = min(stop - position, self.n_images - offset)
            parts.append(self._permutation(epoch)[offset : offset + taken])
            position += taken
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, torch.randperm(self.n_images, generator=generator(self.seed, epoch))
        return self._order


def initial_images(images_NCHW: Tensor, k: int, seed: int, how: str = "random") -> Tensor:
    """(K, C, H, W) float: `k` different images of the collection, chosen by `seed`.

    ``k-means++`` draws each with a probability that grows with its squared distance to those before it (Arthur and
    Vassilvitskii, 2007), seen at no more than `THUMBNAIL_PX`; where fewer than `k` look different, any others follow.
    """
    chosen = torch.randperm(len(images_NCHW), generator=generator(seed))
    if how == "k-means++":
        from sklearn.cluster import kmeans_plusplus

        small = (min(THUMBNAIL_PX, images_NCHW.shape[2]), min(THUMBNAIL_PX, images_NCHW.shape[3]))
        thumbnails = [adaptive_avg_pool2d(to_float(part), small).flatten(1) for part in images_NCHW.split(1024)]
        far = kmeans_plusplus(torch.cat(thumbnails).numpy(), k, random_state=seed)[1].tolist()
        chosen = torch.tensor(list(dict.fromkeys([*far, *chosen.tolist()])))
    return to_float(images_NCHW[chosen[:k]])
