"""Snapshots of all prototypes at the ends of windows; their number is bounded for any length of training.

Shapes: K prototypes, C channels, H x W pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

MAX_SNAPSHOTS = 48
"""Maximum number of snapshots of a trial."""
SIDE_PX = 64
"""Maximum side of a prototype in a snapshot."""
SNAPSHOT_PX = 512 * 512
"""Maximum number of pixels of a snapshot, for any K: 48 snapshots take a few MB at most."""
WEBP_QUALITY = 70
"""Quality of the pictures, 1 to 100."""


@dataclass(frozen=True)
class Snapshot:
    """All prototypes at one moment of training."""

    window: int
    """Number of windows done so far; 0 before training."""
    iteration: int
    """Number of iterations done so far."""
    modules: list[str]
    """Names of the modules that were active until then."""
    k: int
    """Number of prototypes."""
    webp: bytes
    """One WebP picture of all prototypes, row by row, in a grid that is about square."""

    def pictures(self) -> NDArray[np.uint8]:
        """Return the prototypes (K, h, w, 3) in the order of the model, with sides of at most `SIDE_PX`."""
        with Image.open(io.BytesIO(self.webp), formats=["WEBP"]) as image:
            sheet = np.asarray(image.convert("RGB"))
        columns, rows = _grid(self.k)
        height, width = sheet.shape[0] // rows, sheet.shape[1] // columns
        tiles = sheet.reshape(rows, height, columns, width, 3).swapaxes(1, 2)
        return tiles.reshape(rows * columns, height, width, 3)[: self.k]


@torch.no_grad()
def snapshot(prototypes_KCHW: Tensor, window: int, iteration: int, modules: Sequence[str]) -> Snapshot:
    """Return a snapshot of `prototypes_KCHW`, which are float; values outside [0, 1] are clamped."""
    k, _, height, width = prototypes_KCHW.shape
    shrink = min(1.0, min(SIDE_PX, math.isqrt(SNAPSHOT_PX // k)) / max(height, width))
    h, w = max(1, round(shrink * height)), max(1, round(shrink * width))
    small = adaptive_avg_pool2d(prototypes_KCHW.clamp(0, 1), (h, w)).expand(k, 3, h, w)
    columns, rows = _grid(k)
    sheet = torch.zeros(rows * columns, h, w, 3, dtype=torch.uint8)
    sheet[:k] = (255 * small).round().byte().permute(0, 2, 3, 1).cpu()
    pixels = sheet.view(rows, columns, h, w, 3).transpose(1, 2).reshape(rows * h, columns * w, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "WEBP", quality=WEBP_QUALITY)
    return Snapshot(window, iteration, list(modules), k, buffer.getvalue())


class Snapshots:
    """The snapshots of a trial: one of every window, of every second window when these are too many, and so on.

    Which windows have a snapshot depends only on the number of windows, so a resumed trial has the same ones as an
    uninterrupted trial.
    """

    def __init__(self) -> None:
        self.taken: list[Snapshot] = []

    def take(self, prototypes_KCHW: Tensor, window: int, iteration: int, modules: Sequence[str]) -> None:
        """Take a snapshot if `window` is due for one, and drop those that are too many now."""
        stride = 1
        while window // stride >= MAX_SNAPSHOTS:
            stride *= 2
        self.taken = [earlier for earlier in self.taken if earlier.window % stride == 0]
        if window % stride == 0:
            self.taken.append(snapshot(prototypes_KCHW, window, iteration, modules))

    def state(self) -> list[dict[str, Any]]:
        """Return the content for a checkpoint, as tensors and plain values; `snapshots_of` reads it."""
        return [
            {**vars(taken), "webp": torch.frombuffer(bytearray(taken.webp), dtype=torch.uint8)} for taken in self.taken
        ]


def snapshots_of(state: dict[str, Any]) -> list[Snapshot]:
    """Return the snapshots in the checkpoint `state`; checkpoints of earlier versions have none."""
    return [Snapshot(**{**kept, "webp": kept["webp"].numpy().tobytes()}) for kept in state.get("snapshots", ())]


def _grid(k: int) -> tuple[int, int]:
    """Return the numbers of columns and rows of a sheet of `k` prototypes."""
    columns = math.ceil(math.sqrt(k))
    return columns, math.ceil(k / columns)
