"""Photographs that were posted again: resized, recompressed, slightly lighter. Another photograph of a view is none.

Two images look the same where their perceptual hashes (pHash: signs of the low frequencies of brightness) differ in a
few bits and their thumbnails nowhere by much. The hash finds candidates among millions; alone it would confuse
pictures that are mostly plain, or alike but for a colour, a face or a caption. tests/benchmarks/README.md has what the
limits were measured on.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import imagehash
import numpy as np
from PIL import Image

from pipeline.ingest.images import Pixels

HASH_SIDE = 16
"""The hash has this many bits squared."""
HASH_BYTES = HASH_SIDE**2 // 8
THUMBNAIL_PX = 16
LOOK_BYTES = HASH_BYTES + 3 * THUMBNAIL_PX**2
MOST_BITS = 12
"""That differ between the hashes of images that look the same, of 256."""
MOST_COLOR = 16
"""Difference between their thumbnails in any channel of any pixel, of 255."""
PARTS, PART_BITS = 13, 20
"""The hash is searched by its parts (the last one is shorter): of two hashes with up to 12 different bits, one is the
same."""

Looks = np.ndarray[Any, np.dtype[np.uint8]]
"""(N, LOOK_BYTES): per image its hash, then its thumbnail, row by row."""


def look_of(pixels: Pixels) -> bytes:
    """How an image (uint8, H x W x 3 or x 1) looks: hash and thumbnail."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    bits = imagehash.phash(image, hash_size=HASH_SIDE).hash
    thumbnail = image.convert("RGB").resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    return np.packbits(bits).tobytes() + thumbnail.tobytes()


def as_looks(looks: Sequence[bytes]) -> Looks:
    """What `look_of` gave for N images, as numbers."""
    return np.frombuffer(b"".join(looks), np.uint8).reshape(-1, LOOK_BYTES)


def originals_of(looks: Looks, kept: int = 0) -> dict[int, int]:
    """For each image that looks like an earlier one, which one that is; what it names is named by none.

    Time and memory grow with the number of images, however many of them look the same.

    Args:
        looks: of N images, in order of preference.
        kept: the first so many are no duplicates, whatever they look like.
    """
    originals = _Originals()
    found: dict[int, int] = {}
    for place, look in enumerate(looks):
        value = int.from_bytes(look[:HASH_BYTES].tobytes())
        if place >= kept:
            near = sorted(set(originals.near(value)))
            thumbnails = looks[near, HASH_BYTES:].astype(np.int16)
            alike = np.abs(thumbnails - look[HASH_BYTES:]).max(1, initial=0) <= MOST_COLOR
            if alike.any():
                found[place] = near[int(alike.argmax())]
                continue
        originals.add(place, value)
    return found


class _Originals:
    """Hashes by their parts: chains of those that share one, in arrays of numbers."""

    def __init__(self) -> None:
        self._places: list[int] = []
        self._values: list[int] = []
        self._last = [array("i", [-1]) * (1 << PART_BITS) for _ in range(PARTS)]
        self._before = [array("i") for _ in range(PARTS)]

    def add(self, place: int, value: int) -> None:
        """Keep the hash `value` of the image at `place`."""
        own = len(self._places)
        self._places.append(place)
        self._values.append(value)
        for last, before, part in zip(self._last, self._before, _parts(value), strict=True):
            before.append(last[part])
            last[part] = own

    def near(self, value: int) -> Iterator[int]:
        """Places of the images whose hashes differ from `value` in few bits, some of them repeatedly."""
        for last, before, part in zip(self._last, self._before, _parts(value), strict=True):
            own = last[part]
            while own >= 0:
                if (self._values[own] ^ value).bit_count() <= MOST_BITS:
                    yield self._places[own]
                own = before[own]


def _parts(value: int) -> list[int]:
    mask = (1 << PART_BITS) - 1
    return [value >> PART_BITS * i & mask for i in range(PARTS)]
