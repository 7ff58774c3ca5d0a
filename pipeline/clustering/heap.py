"""How a training process takes memory for pictures and gives it back."""

from __future__ import annotations

import ctypes

MMAP_THRESHOLD = -3
"""glibc's number of this parameter (mallopt(3))."""
LARGE_BYTES = 4 * 2**20


def return_large_blocks() -> None:
    """Have blocks from 4 MiB on returned to the system when they are freed; for CPU training with glibc.

    glibc raises that limit to 32 MiB by itself as soon as such blocks are freed. Below it they come from one heap,
    which the activations of an encoder, all of different sizes, leave full of holes: 75 to 150 MiB more than is used.
    Elsewhere than under glibc it changes nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE_BYTES)
