"""Near-duplicates: photographs that were posted again after resizing, recompression or a slight change of brightness.

Another photograph of the same view is not a near-duplicate. Two images look the same if their perceptual hashes (pHash:
the signs of the low frequencies of brightness) differ in few bits, and their thumbnails differ little in every pixel.
The hash finds candidates among millions of images. Alone, it would confuse images that are mostly plain, or that differ
only in a colour, a face or a caption. tests/benchmarks/README.md describes how the limits were measured.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import imagehash
import numpy as np
from PIL import Image

from pipeline.records import Pixels

HASH_SIDE = 16
"""Side of the square of bits that forms the perceptual hash."""

HASH_BYTES = HASH_SIDE**2 // 8
"""Size of the perceptual hash in bytes."""

THUMBNAIL_PX = 16
"""Side of the thumbnail in px."""

SIGNATURE_BYTES = HASH_BYTES + 3 * THUMBNAIL_PX**2
"""Size of a perceptual signature in bytes."""

MAX_DIFFERENT_BITS = 12
"""Maximum number of bits, of 256, in which the hashes of two images that look the same differ."""

MAX_COLOR_DIFFERENCE = 16
"""Maximum difference, of 255, between their thumbnails in any channel of any pixel."""

PARTS, PART_BITS = 13, 20
"""Number of parts into which the index divides a hash, and bits per part (the last part is shorter). If two hashes
differ in at most 12 bits, at least one of their 13 parts is equal."""

Signatures = np.ndarray[Any, np.dtype[np.uint8]]
"""Perceptual signatures of N images (N, SIGNATURE_BYTES): the hash, then the RGB thumbnail row by row."""


def signature_of(pixels: Pixels) -> bytes:
    """Return the perceptual signature of an image (uint8, H x W x 3 or x 1): its hash and its thumbnail."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    bits = imagehash.phash(image, hash_size=HASH_SIDE).hash
    thumbnail = image.convert("RGB").resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    return np.packbits(bits).tobytes() + thumbnail.tobytes()


def as_signatures(signatures: Sequence[bytes]) -> Signatures:
    """Stack the signatures of N images, as `signature_of` returns them, to one array."""
    return np.frombuffer(b"".join(signatures), np.uint8).reshape(-1, SIGNATURE_BYTES)


def originals_of(signatures: Signatures, kept: int = 0) -> dict[int, int]:
    """Return the original of each image that looks like an earlier image, by their indices.

    Originals are never near-duplicates themselves. Time and memory grow with the number of images, regardless of
    how many of them look the same.

    Args:
        signatures: signatures of N images, in order of preference.
        kept: number of images at the beginning that are never near-duplicates.
    """
    hashes = _HashIndex()
    originals: dict[int, int] = {}
    for index, signature in enumerate(signatures):
        bits = int.from_bytes(signature[:HASH_BYTES].tobytes())
        if index >= kept:
            candidates = sorted(set(hashes.similar(bits)))
            thumbnails = signatures[candidates, HASH_BYTES:].astype(np.int16)
            alike = np.abs(thumbnails - signature[HASH_BYTES:]).max(1, initial=0) <= MAX_COLOR_DIFFERENCE
            if alike.any():
                originals[index] = candidates[int(alike.argmax())]
                continue
        hashes.add(index, bits)
    return originals


class _HashIndex:
    """Index of hashes by their parts.

    For each value of each part, the hashes with this value form a linked list from the latest to the first one. The
    lists are stored in arrays of numbers.
    """

    def __init__(self) -> None:
        self._images: list[int] = []
        self._hashes: list[int] = []
        self._latest = [array("i", [-1]) * (1 << PART_BITS) for _ in range(PARTS)]
        self._previous = [array("i") for _ in range(PARTS)]

    def add(self, image: int, bits: int) -> None:
        """Add the hash `bits` of the image with the index `image`."""
        entry = len(self._images)
        self._images.append(image)
        self._hashes.append(bits)
        for latest, previous, part in zip(self._latest, self._previous, _parts(bits), strict=True):
            previous.append(latest[part])
            latest[part] = entry

    def similar(self, bits: int) -> Iterator[int]:
        """Yield images whose hashes differ from `bits` in at most MAX_DIFFERENT_BITS bits; images can be repeated."""
        for latest, previous, part in zip(self._latest, self._previous, _parts(bits), strict=True):
            entry = latest[part]
            while entry >= 0:
                if (self._hashes[entry] ^ bits).bit_count() <= MAX_DIFFERENT_BITS:
                    yield self._images[entry]
                entry = previous[entry]


def _parts(bits: int) -> list[int]:
    mask = (1 << PART_BITS) - 1
    return [bits >> PART_BITS * i & mask for i in range(PARTS)]
