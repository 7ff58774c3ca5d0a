"""Animation of all prototypes during training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.clustering.snapshots import SNAPSHOT_PX, Snapshot, snapshot
from pipeline.clustering.trial import TrialResult
from pipeline.reporting.pictures.drawing import INK, PALE, PAPER, paste
from pipeline.reporting.pictures.mosaic import columns_of
from pipeline.reporting.pixels import animated_webp

FRAME_MS, LAST_MS = 150, 3000
"""Durations for which each frame, and the last frame, are shown."""
QUALITIES = (70, 45, 20)
"""WebP qualities to try, best first."""
LIMIT_BYTES = 2 * 2**20
"""Maximum size at which the animation fits on the page; animations of noise can exceed it at every quality."""
GAP_PX, MARGIN_PX, TEXT_PX = 4, 16, 15


def frames_to_show(
    snapshots: Sequence[Snapshot], prototypes_KCHW: Tensor, result: TrialResult, examples: bool
) -> list[Snapshot]:
    """Return the frames of the animation of a trial: snapshots taken during training, and the trained prototypes.

    Args:
        snapshots: snapshots of the training; none if an earlier version of the code trained the model.
        prototypes_KCHW: the trained prototypes.
        result: result of the trial.
        examples: whether photos may be shown. Prototypes are initialised with photos, which remain visible until the
            prototypes have become means of their images. Without examples, the first stage is therefore left out.
    """
    start = 0 if examples else result.stages[0].iterations + 1
    modules = result.stages[-1].modules
    last = snapshot(prototypes_KCHW, len(result.history), result.iterations, modules)
    return [*(frame for frame in snapshots if start <= frame.iteration < result.iterations), last]


def draw_timelapse(frames: Sequence[Snapshot], order: Sequence[int], tile_px: int) -> bytes:
    """Return an animated WebP file of the prototypes, with the iteration and the active modules in each frame.

    Args:
        frames: at least one snapshot; the last one is shown longer.
        order: indices of the prototypes in display order, as in the mosaic.
        tile_px: maximum side of one prototype in px; the side is smaller if there are many prototypes.
    """
    side = max(1, min(tile_px, math.isqrt(SNAPSHOT_PX // len(order))))
    images = [_frame(frame, order, side) for frame in frames]
    # All frames need the same width, which depends on the longest caption.
    width = max(image.width for image in images)
    images = [_widened(image, width) for image in images]
    durations_ms = [*[FRAME_MS] * (len(images) - 1), LAST_MS]
    for quality in QUALITIES:
        data = animated_webp(images, durations_ms, quality)
        if len(data) <= LIMIT_BYTES:
            break
    return data


def _frame(frame: Snapshot, order: Sequence[int], side: int) -> Image.Image:
    font = ImageFont.load_default(size=TEXT_PX)
    title = f"iteration {frame.iteration:,}   "
    modules = " + ".join(frame.modules) or "no transformation"
    columns = columns_of(len(order))
    rows, cell, top = math.ceil(len(order) / columns), side + GAP_PX, MARGIN_PX + 2 * TEXT_PX
    width = max(columns * cell - GAP_PX, math.ceil(font.getlength(title + modules)))
    image = Image.new("RGB", (width + 2 * MARGIN_PX, top + rows * cell - GAP_PX + MARGIN_PX), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN_PX, MARGIN_PX), title, INK, font)
    draw.text((MARGIN_PX + font.getlength(title), MARGIN_PX), modules, PALE, font)
    pictures = frame.pictures()
    for position, cluster in enumerate(order):
        row, column = divmod(position, columns)
        paste(image, pictures[cluster], (MARGIN_PX + column * cell, top + row * cell), side)
    return image


def _widened(image: Image.Image, width: int) -> Image.Image:
    wide = Image.new("RGB", (width, image.height), PAPER)
    wide.paste(image, (0, 0))
    return wide
