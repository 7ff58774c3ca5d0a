"""How prototypes form: pictures of all of them at ends of windows, a bounded number for any length of training.

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

MOST = 48
"""Snapshots of a trial."""
SIDE_PX = 64
"""Longest side of a prototype in a snapshot."""
SNAPSHOT_PX = 512 * 512
"""Pixels of a snapshot: where prototypes are many, each has fewer, and 48 snapshots of any K take a few MB at most."""
WEBP_QUALITY = 70


@dataclass(frozen=True)
class Snapshot:
    """All prototypes at one moment of training."""

    window: int
    """Windows that were done; 0 before training."""
    iteration: int
    """Iterations that were done."""
    modules: list[str]
    """Modules that were active until then."""
    k: int
    webp: bytes
    """The prototypes row by row, as many in a row as there are rows, or one more."""

    def pictures(self) -> NDArray[np.uint8]:
        """(K, h, w, 3): the prototypes in the model's order, none larger than `SIDE_PX`."""
        with Image.open(io.BytesIO(self.webp), formats=["WEBP"]) as image:
            sheet = np.asarray(image.convert("RGB"))
        columns, rows = _grid(self.k)
        height, width = sheet.shape[0] // rows, sheet.shape[1] // columns
        tiles = sheet.reshape(rows, height, columns, width, 3).swapaxes(1, 2)
        return tiles.reshape(rows * columns, height, width, 3)[: self.k]


@torch.no_grad()
def snapshot(prototypes_KCHW: Tensor, window: int, iteration: int, modules: Sequence[str]) -> Snapshot:
    """A snapshot of `prototypes_KCHW`, which are float; what lies outside [0, 1] is clamped."""
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
    """The snapshots of a trial: of every window, of every second one when those are too many, and so on.

    Which windows have one depends on how many are done alone, so a resumed trial has those of the uninterrupted one.
    """

    def __init__(self) -> None:
        self.taken: list[Snapshot] = []

    def take(self, prototypes_KCHW: Tensor, window: int, iteration: int, modules: Sequence[str]) -> None:
        """Keep a snapshot, if `window` is one of those that have one; let go of those that are too many now."""
        stride = 1
        while window // stride >= MOST:
            stride *= 2
        self.taken = [earlier for earlier in self.taken if earlier.window % stride == 0]
        if window % stride == 0:
            self.taken.append(snapshot(prototypes_KCHW, window, iteration, modules))

    def state(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps: tensors and plain values; `snapshots_of` takes it back."""
        return [
            {**vars(taken), "webp": torch.frombuffer(bytearray(taken.webp), dtype=torch.uint8)} for taken in self.taken
        ]


def snapshots_of(state: dict[str, Any]) -> list[Snapshot]:
    """The snapshots in the checkpoint `state`; none where an earlier version wrote it."""
    return [Snapshot(**{**kept, "webp": kept["webp"].numpy().tobytes()}) for kept in state.get("snapshots", ())]


def _grid(k: int) -> tuple[int, int]:
    """Columns and rows of a sheet of `k` prototypes."""
    columns = math.ceil(math.sqrt(k))
    return columns, math.ceil(k / columns)
