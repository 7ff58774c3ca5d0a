"""Batches of images: the same number on every worker, in an order that depends only on the seed.

Global batch i is a function of the seed and i for any number of workers: each worker takes its share of it, and a
resumed run continues at its iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import torch
from torch import Tensor

from pipeline.clustering.data.images import ImageSet, to_float
from pipeline.clustering.seeding import generator

PREFETCH_THREADS = 4
"""Number of shards that a worker reads ahead at once."""


class EpochOrder:
    """The order of all images in each epoch.

    If all images fit in memory, they are permuted at random. Otherwise the shards are permuted and divided into windows
    that fit in memory, and the images of each window are permuted. One window follows the other, like a shuffle buffer
    that is emptied before it is filled again; the position of an image is therefore known without reading any images.

    Args:
        sizes: number of images of each shard.
        seed: seed of the order.
        window: maximum number of images of a window, unless a single shard has more. Default: all.
    """

    def __init__(self, sizes: Sequence[int], seed: int, window: int | None = None) -> None:
        self.sizes, self.seed = list(sizes), seed
        self.n_images = sum(sizes)
        self.window = self.n_images if window is None else window
        self._lock = Lock()
        self._recent: dict[int, Tensor] = {}

    def permutation(self, epoch: int) -> Tensor:
        """Return the indices of the images of `epoch` in order, int64 (n_images)."""
        with self._lock:  # batches are made in threads
            if epoch not in self._recent:
                self._recent = {other: order for other, order in self._recent.items() if abs(other - epoch) == 1}
                self._recent[epoch] = self._draw(generator(self.seed, epoch))
            return self._recent[epoch]

    def _draw(self, random: torch.Generator) -> Tensor:
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
        merged = [torch.cat(window) for window in windows]
        return torch.cat([window[torch.randperm(len(window), generator=random)] for window in merged])


class BatchStream:
    """Endless sequence of batches: all epochs one after the other, each in a new order.

    A batch may span several epochs, so every batch is full and every image is seen equally often, even if a batch is
    larger than the collection.

    Args:
        order: order of the images in each epoch.
        batch_size: number of images per global batch; divisible by `world_size`.
        rank, world_size: rank of this worker and number of workers.
    """

    def __init__(self, order: EpochOrder, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.order, self.batch_size = order, batch_size
        self.rank, self.world_size = rank, world_size

    def indices(self, iteration: int) -> Tensor:
        """Return the indices of this worker's images in global batch `iteration`, int64 (batch_size / world_size)."""
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
    """Loads batches onto a worker's device; the next one is prepared while the worker trains on the current one.

    Args:
        images: all images.
        stream: sequence of batches.
        device: device of the worker; batches are copied to a GPU from pinned memory, while it computes.
    """

    def __init__(self, images: ImageSet, stream: BatchStream, device: torch.device) -> None:
        self._images, self._stream, self._device = images, stream, device
        self._thread = ThreadPoolExecutor(1, "loader")
        self._next: tuple[int, Future[Tensor]] | None = None
        # Shards are read half a window ahead.
        window = stream.order.window
        self._ahead = window // (2 * stream.batch_size) if window < stream.order.n_images else None
        self._fetching = ThreadPoolExecutor(PREFETCH_THREADS, "fetch")

    def batch(self, iteration: int) -> Tensor:
        """Return this worker's share of global batch `iteration`: (B, C, H, W), float in [0, 1]."""
        next_iteration, future = self._next or (None, None)
        images = future.result() if future is not None and next_iteration == iteration else self._gather(iteration)
        self._next = iteration + 1, self._thread.submit(self._gather, iteration + 1)
        return to_float(images.to(self._device, non_blocking=True))

    def indices(self, iteration: int) -> Tensor:
        """Return the indices of the images of `batch`, int64 (B)."""
        return self._stream.indices(iteration)

    def close(self) -> None:
        """Stop preparing batches."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._fetching.shutdown(wait=False, cancel_futures=True)

    def _gather(self, iteration: int) -> Tensor:
        if self._ahead is not None:
            self._fetching.submit(self._images.fetch, self._stream.indices(iteration + self._ahead))
        images = self._images[self._stream.indices(iteration)]
        return images.pin_memory() if self._device.type == "cuda" else images
