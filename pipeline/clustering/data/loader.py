"""Images → batches: the same number on every worker, in an order that depends on the seed alone.

Global batch i is a function of seed and i, whatever the number of workers: each worker takes its part of it, and a
resumed run continues at its iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from pipeline.clustering.data.images import ImageSet, to_float
from pipeline.clustering.seeding import generator

FETCHING = 4
"""Shards that a worker reads ahead at once."""
THUMBNAIL_PX = 16
"""Side of the images between which k-means++ measures distances."""


class EpochOrder:
    """The order of all images in each epoch.

    Images that fit in memory are drawn in any order. Of more, the shards are put in a random order and cut into
    windows of as many as fit; the images of a window are drawn in any order, one window after the other (a shuffle
    buffer that is emptied before it is filled again, so that an image's place is known without reading any).

    Args:
        sizes: images of each shard.
        seed: of the order.
        window: images that a window holds at most, unless a single shard has more. Default: all.
    """

    def __init__(self, sizes: Sequence[int], seed: int, window: int | None = None) -> None:
        self.sizes, self.seed = list(sizes), seed
        self.n_images = sum(sizes)
        self.window = self.n_images if window is None else window
        self._lock = Lock()
        self._recent: dict[int, Tensor] = {}

    def permutation(self, epoch: int) -> Tensor:
        """int64 (n_images): the images of `epoch` in order."""
        with self._lock:  # batches are made in threads
            if epoch not in self._recent:
                self._recent = {known: order for known, order in self._recent.items() if abs(known - epoch) == 1}
                self._recent[epoch] = self._drawn(generator(self.seed, epoch))
            return self._recent[epoch]

    def _drawn(self, random: torch.Generator) -> Tensor:
        if self.window >= self.n_images:
            return torch.randperm(self.n_images, generator=random)
        images = torch.arange(self.n_images).split(self.sizes)
        windows: list[list[Tensor]] = [[]]
        room = self.window
        for shard in torch.randperm(len(images), generator=random).tolist():
            if self.sizes[shard] > room and windows[-1]:
                windows.append([])
                room = self.window
            windows[-1].append(images[shard])
            room -= self.sizes[shard]
        together = [torch.cat(window) for window in windows]
        return torch.cat([window[torch.randperm(len(window), generator=random)] for window in together])


class BatchStream:
    """Endless batches: epochs of all images, each in a new order, one after the other without a gap.

    A batch may span two epochs, so every batch is full and every image is seen equally often, even where a batch is
    larger than the collection.

    Args:
        order: of the images in each epoch.
        batch_size: images per global batch; divisible by `world_size`.
        rank, world_size: this worker's place among the workers.
    """

    def __init__(self, order: EpochOrder, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.order, self.batch_size = order, batch_size
        self.rank, self.world_size = rank, world_size

    def indices(self, iteration: int) -> Tensor:
        """int64 (batch_size / world_size): this worker's images in global batch `iteration`."""
        local = self.batch_size // self.world_size
        start = iteration * self.batch_size + self.rank * local
        parts = []
        position, stop = start, start + local
        while position < stop:
            epoch, offset = divmod(position, self.order.n_images)
            taken = min(stop - position, self.order.n_images - offset)
            parts.append(self.order.permutation(epoch)[offset : offset + taken])
            position += taken
        return torch.cat(parts)


class Loader:
    """Batches on a worker's device; the next one is made while the worker learns from the one before.

    Args:
        images: that the batches are of.
        stream: says which.
        device: where they go; to a GPU from pinned memory, while it computes.
    """

    def __init__(self, images: ImageSet, stream: BatchStream, device: torch.device) -> None:
        self._images, self._stream, self._device = images, stream, device
        self._thread = ThreadPoolExecutor(1, "loader")
        self._next: tuple[int, Future[Tensor]] | None = None
        # Half a window ahead, the shards of the next window begin to be read.
        window = stream.order.window
        self._ahead = window // (2 * stream.batch_size) if window < stream.order.n_images else None
        self._fetching = ThreadPoolExecutor(FETCHING, "fetch")

    def batch(self, iteration: int) -> Tensor:
        """(B, C, H, W) float in [0, 1]: this worker's part of global batch `iteration`."""
        known, made = self._next or (None, None)
        images = made.result() if made is not None and known == iteration else self._gather(iteration)
        self._next = iteration + 1, self._thread.submit(self._gather, iteration + 1)
        return to_float(images.to(self._device, non_blocking=True))

    def close(self) -> None:
        """Make no more batches."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._fetching.shutdown(wait=False, cancel_futures=True)

    def _gather(self, iteration: int) -> Tensor:
        if self._ahead is not None:
            self._fetching.submit(self._images.fetch, self._stream.indices(iteration + self._ahead))
        images = self._images[self._stream.indices(iteration)]
        return images.pin_memory() if self._device.type == "cuda" else images


def initial_images(images: ImageSet, k: int, seed: int, how: str = "random") -> Tensor:
    """(K, C, H, W) float: `k` different images of the collection, chosen by `seed`.

    ``k-means++`` draws each with a probability that grows with its squared distance to those before it (Arthur and
    Vassilvitskii, 2007), seen at no more than `THUMBNAIL_PX`; where fewer than `k` look different, any others follow.
    """
    chosen = torch.randperm(len(images), generator=generator(seed))
    if how == "k-means++":
        from sklearn.cluster import kmeans_plusplus

        small = (min(THUMBNAIL_PX, images.shape[1]), min(THUMBNAIL_PX, images.shape[2]))
        thumbnails = [adaptive_avg_pool2d(to_float(part), small).flatten(1) for part in images.parts(1024)]
        far = kmeans_plusplus(torch.cat(thumbnails).numpy(), k, random_state=seed)[1].tolist()
        chosen = torch.tensor(list(dict.fromkeys([*far, *chosen.tolist()])))
    return to_float(images[chosen[:k]])
