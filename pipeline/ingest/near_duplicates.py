"""Photographs that were posted again: resized, recompressed, slightly lighter. Another photograph of a view is none.

Two images look the same where their perceptual hashes (pHash: signs of the low frequencies of brightness) differ in a
few bits and their mean colours hardly. The hash alone would confuse smooth pictures of different colours.
tests/benchmarks/README.md has what the limits were measured on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import imagehash
import numpy as np
from PIL import Image

from pipeline.ingest.images import Pixels

HASH_SIDE = 16
"""The hash has this many bits squared."""
MOST_BITS = 12
"""That differ between images that look the same, of 256."""
MOST_COLOR = 16
"""Difference of any channel's mean between them, of 255."""
CHUNKS = 16
"""The hash is searched by this many parts: of two hashes with fewer different bits, one part is the same."""

Looks = np.ndarray[Any, np.dtype[np.uint8]]
"""(N, 35): per image 32 bytes of pHash and its mean red, green and blue."""


def look_of(pixels: Pixels) -> str:
    """How an image (uint8, H x W x 3 or x 1) looks: 64 hexadecimal digits of pHash and 6 of its mean colour."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    bits = imagehash.phash(image, hash_size=HASH_SIDE).hash
    color = np.rint(pixels.mean((0, 1))).astype(np.uint8)
    return (np.packbits(bits).tobytes() + np.broadcast_to(color, 3).tobytes()).hex()


def as_looks(looks: Sequence[str]) -> Looks:
    """What `look_of` gave for N images, as numbers."""
    return np.frombuffer(bytes.fromhex("".join(looks)), np.uint8).reshape(-1, HASH_SIDE**2 // 8 + 3)


def originals_of(looks: Looks, kept: int = 0) -> dict[int, int]:
    """For each image that looks like an earlier one, which one that is; what it names is named by none.

    Args:
        looks: of N images, in order of preference.
        kept: the first so many are no duplicates, whatever they look like.
    """
    earlier_of: dict[int, list[int]] = {}
    for earlier, later in _pairs(looks, kept).tolist():
        earlier_of.setdefault(later, []).append(earlier)
    found: dict[int, int] = {}
    for later in sorted(earlier_of):
        original = next((i for i in sorted(earlier_of[later]) if i not in found), None)
        if original is not None:
            found[later] = original
    return found


def _pairs(looks: Looks, kept: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(P, 2): places of all pairs that look the same, the earlier one first, the later one not below `kept`."""
    hashes = np.ascontiguousarray(looks[:, :-3])
    words, parts = hashes.view(np.uint64), hashes.view(np.uint16).reshape(len(looks), CHUNKS)
    colors = looks[:, -3:].astype(np.int16)
    found = [np.empty((0, 2), np.int64)]
    for part in parts.T:
        order = np.argsort(part, kind="stable")  # equal parts stand together, the earlier image first
        ordered = part[order]
        left = np.arange(len(order))
        for step in range(1, len(order)):
            left = left[: np.searchsorted(left, len(order) - step)]
            left = left[ordered[left] == ordered[left + step]]
            if not left.size:
                break
            pairs = np.stack([order[left], order[left + step]], axis=1)
            pairs = pairs[pairs[:, 1] >= kept]
            a, b = pairs.T
            same = np.bitwise_count(words[a] ^ words[b]).sum(1) <= MOST_BITS
            pairs = pairs[same]
            a, b = pairs.T
            found.append(pairs[np.abs(colors[a] - colors[b]).max(1) <= MOST_COLOR])
    return np.unique(np.concatenate(found), axis=0)
