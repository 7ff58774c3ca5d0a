"""Access to the images of a run by index; shards are decoded when they are needed.

Shapes: N images, B of them, C channels, H x W pixels. Images are uint8 here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ClusteringError
from pipeline.records import Pixels
from pipeline.shards import read_shard
from pipeline.storage import Storage


def decode_shard(storage: Storage, key: str) -> Pixels:
    """Return the images (n, C, H, W) of the shard `key` in order; an empty shard has the shape (0, 0, 0, 0).

    Raises ClusteringError if the images have different shapes, and StorageError if the shard is broken.
    """
    images = [sample.pixels().transpose(2, 0, 1) for sample in read_shard(storage, key)]
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ClusteringError(
            f"{storage.uri(key)}: expected images of one shape, found {sorted(shapes)}; "
            "delete this crawl and ingest it again"
        )
    return np.stack(images) if images else np.empty((0, 0, 0, 0), np.uint8)


def to_float(images_BCHW: Tensor) -> Tensor:
    """Convert uint8 in 0..255 to float in [0, 1], in torch's default precision (float32)."""
    return images_BCHW.to(torch.get_default_dtype()) / 255


class ImageSet:
    """All images of a run, with a limited number of shards in memory; safe to use from several threads.

    Args:
        sizes: number of images of each shard.
        open_shard: function that returns the images (n, C, H, W) of a shard, given its index.
        resident_images: maximum number of images in memory; the most recently used shards stay. Default: all.

    Raises ClusteringError if there are no images, or if shards hold images of different shapes.
    """

    def __init__(
        self, sizes: Sequence[int], open_shard: Callable[[int], Pixels], resident_images: int | None = None
    ) -> None:
        if not sum(sizes):
            raise ClusteringError("no image was accepted: there is nothing to cluster; see the reasons in crawl.json")
        self.sizes = list(sizes)
        self.resident_images = resident_images or sum(sizes)
        self._ends = np.cumsum(sizes)
        self._open_shard = open_shard
        self._shards: OrderedDict[int, Future[Pixels]] = OrderedDict()
        self._lock = Lock()
        self.shape: tuple[int, int, int] = (0, 0, 0)
        """Shape (C, H, W) of each image."""
        self.shape = self._shard(next(index for index, size in enumerate(sizes) if size)).shape[1:]

    @classmethod
    def of(cls, images_NCHW: Tensor) -> ImageSet:
        """Return a set of images that are already in memory."""
        return cls([len(images_NCHW)], lambda _: images_NCHW.numpy())

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def window(self) -> int:
        """Number of images to draw from at a time: all, or half of those in memory, to leave room to read ahead."""
        return len(self) if self.resident_images >= len(self) else max(1, self.resident_images // 2)

    def __getitem__(self, indices_B: Tensor) -> Tensor:
        """Return a copy of the images at these indices (B, C, H, W), in this order."""
        indices = indices_B.numpy()
        images = np.empty((len(indices), *self.shape), np.uint8)
        shards = self._shards_of(indices)
        for shard in np.unique(shards):
            rows = np.nonzero(shards == shard)[0]
            images[rows] = self._shard(int(shard))[indices[rows] - self._start(shard)]
        return torch.from_numpy(images)

    def fetch(self, indices_B: Tensor) -> None:
        """Load the shards of these images into memory, as far as there is room."""
        for shard in np.unique(self._shards_of(indices_B.numpy())):
            self._shard(int(shard))

    def batches(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Tensor]:
        """Yield this worker's images, every `world_size`-th of each shard, in order in batches of at most `size`."""
        for shard in range(len(self.sizes)):
            indices = torch.arange(self._start(shard), int(self._ends[shard]))[rank::world_size]
            yield from (self[batch] for batch in indices.split(size) if len(batch))

    def _shards_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._ends, indices, side="right")

    def _start(self, shard: int) -> int:
        return int(self._ends[shard]) - self.sizes[shard]

    def _shard(self, index: int) -> Pixels:
        with self._lock:
            future = self._shards.get(index)
            if is_new := future is None:
                future = self._shards[index] = Future()
                self._trim()
            self._shards.move_to_end(index)
        if is_new:
            try:
                future.set_result(self._read_shard(index))
            except BaseException as error:
                future.set_exception(error)
                with self._lock:  # the next call tries again
                    self._shards.pop(index, None)
        return future.result()

    def _read_shard(self, index: int) -> Pixels:
        """Open a shard and check its shape."""
        images = self._open_shard(index)
        expected = (self.sizes[index], *(self.shape if any(self.shape) else images.shape[1:]))
        if images.shape != expected:
            raise ClusteringError(
                f"shard {index} holds images of shape {images.shape}, expected {expected}; "
                "delete its crawl and ingest it again"
            )
        return images

    def _trim(self) -> None:
        """Drop the least recently used shards until the others fit in memory."""
        held = sum(self.sizes[shard] for shard in self._shards)
        while held > self.resident_images and len(self._shards) > 1:
            held -= self.sizes[self._shards.popitem(last=False)[0]]
