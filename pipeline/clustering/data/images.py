"""The images of a run by their index, decoded shard by shard when they are needed.

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
from pipeline.shards import read_shard
from pipeline.storage import Storage

Pixels = NDArray[np.uint8]


def decode_shard(storage: Storage, key: str) -> Pixels:
    """(n, C, H, W): the images of the shard `key`, in order; (0, 0, 0, 0) where it has none.

    Raises ClusteringError where they are not all of one size, and StorageError where the shard is broken.
    """
    images = [sample.pixels().transpose(2, 0, 1) for sample in read_shard(storage, key)]
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ClusteringError(f"{storage.uri(key)}: holds images of different shapes {sorted(shapes)}: expected one")
    return np.stack(images) if images else np.empty((0, 0, 0, 0), np.uint8)


def to_float(images_BCHW: Tensor) -> Tensor:
    """uint8 0..255 to [0, 1] in torch's default precision (float32)."""
    return images_BCHW.to(torch.get_default_dtype()) / 255


class ImageSet:
    """All images of a run, of which some shards are in memory at a time; safe to use from several threads.

    Args:
        sizes: images of each shard.
        open_shard: gives the (n, C, H, W) images of a shard by its number.
        resident_images: images in memory at most; the shards that were used last stay. Default: all.

    Raises ClusteringError where there is no image, or shards hold images of different shapes.
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
        """(C, H, W) of each image."""
        self.shape = self._shard(next(index for index, size in enumerate(sizes) if size)).shape[1:]

    @classmethod
    def of(cls, images_NCHW: Tensor) -> ImageSet:
        """Images that are in memory anyway."""
        return cls([len(images_NCHW)], lambda _: images_NCHW.numpy())

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def window(self) -> int:
        """Images to draw from at a time: all, or half of what is in memory, so that the next can be read meanwhile."""
        return len(self) if self.resident_images >= len(self) else max(1, self.resident_images // 2)

    def __getitem__(self, indices_B: Tensor) -> Tensor:
        """(B, C, H, W): a copy of the images of these indices, in this order."""
        indices = indices_B.numpy()
        images = np.empty((len(indices), *self.shape), np.uint8)
        shards = self._shards_of(indices)
        for shard in np.unique(shards):
            places = np.nonzero(shards == shard)[0]
            images[places] = self._shard(int(shard))[indices[places] - self._start(shard)]
        return torch.from_numpy(images)

    def fetch(self, indices_B: Tensor) -> None:
        """Have the shards of these images in memory, as far as there is room."""
        for shard in np.unique(self._shards_of(indices_B.numpy())):
            self._shard(int(shard))

    def parts(self, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Tensor]:
        """Batches of at most `size` of every `world_size`-th image of each shard, from `rank`, in order."""
        for shard in range(len(self.sizes)):
            places = torch.arange(self._start(shard), int(self._ends[shard]))[rank::world_size]
            yield from (self[part] for part in places.split(size) if len(part))

    def _shards_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._ends, indices, side="right")

    def _start(self, shard: int) -> int:
        return int(self._ends[shard]) - self.sizes[shard]

    def _shard(self, index: int) -> Pixels:
        with self._lock:
            opened = self._shards.get(index)
            if mine := opened is None:
                opened = self._shards[index] = Future()
                self._trim()
            self._shards.move_to_end(index)
        if mine:
            try:
                opened.set_result(self._checked(index))
            except BaseException as error:
                opened.set_exception(error)
                with self._lock:  # whoever wants it next tries again
                    self._shards.pop(index, None)
        return opened.result()

    def _checked(self, index: int) -> Pixels:
        images = self._open_shard(index)
        expected = (self.sizes[index], *(self.shape if any(self.shape) else images.shape[1:]))
        if images.shape != expected:
            raise ClusteringError(f"shard {index} holds images of shape {images.shape}, expected {expected}")
        return images

    def _trim(self) -> None:
        held = sum(self.sizes[shard] for shard in self._shards)
        while held > self.resident_images and len(self._shards) > 1:
            held -= self.sizes[self._shards.popitem(last=False)[0]]
