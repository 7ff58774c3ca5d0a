"""All prototypes over training, as an animated picture: how they form."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.clustering.snapshots import SNAPSHOT_PX, Snapshot, snapshot
from pipeline.clustering.trial import TrialResult
from pipeline.reporting.pictures.mosaic import INK, PALE, PAPER, columns_of, paste
from pipeline.reporting.pictures.pixels import animated_webp

FRAME_MS, LAST_MS = 150, 3000
"""How long each moment, and the end of training, are shown."""
QUALITIES = (70, 45, 20)
"""Of WebP, tried from the best."""
LIMIT_BYTES = 2 * 2**20
"""That the animation should not exceed, so that the page has room for it; of noise it does all the same."""
GAP_PX, MARGIN_PX, TEXT_PX = 4, 16, 15


def moments(taken: Sequence[Snapshot], prototypes_KCHW: Tensor, result: TrialResult, examples: bool) -> list[Snapshot]:
    """What the animation of the trial `result` shows: snapshots of its training, and the trained prototypes.

    Args:
        taken: while it was trained; none, where an earlier version trained it.
        prototypes_KCHW: the trained ones.
        examples: whether photos may be shown. Training starts from some, and they shine through until the prototypes
            have become means of their images: without examples the first stage is left out.
    """
    begin = 0 if examples else result.stages[0].iterations + 1
    modules = result.stages[-1].modules
    last = snapshot(prototypes_KCHW, len(result.history), result.iterations, modules)
    return [*(each for each in taken if begin <= each.iteration < result.iterations), last]


def draw_timelapse(shown: Sequence[Snapshot], order: Sequence[int], tile_px: int) -> bytes:
    """An animated WebP file of the prototypes at each of the moments `shown`, with the iteration and active modules.

    Args:
        shown: at least one; the last stays longer.
        order: of the prototypes, as in the mosaic.
        tile_px: side of one prototype; smaller where there are many.
    """
    side = max(1, min(tile_px, math.isqrt(SNAPSHOT_PX // len(order))))
    frames = [_frame(moment, order, side) for moment in shown]
    # All of one size, which the longest caption may decide.
    width = max(frame.width for frame in frames)
    frames = [_widened(frame, width) for frame in frames]
    durations_ms = [*[FRAME_MS] * (len(frames) - 1), LAST_MS]
    for quality in QUALITIES:
        data = animated_webp(frames, durations_ms, quality)
        if len(data) <= LIMIT_BYTES:
            break
    return data


def _frame(moment: Snapshot, order: Sequence[int], side: int) -> Image.Image:
    font = ImageFont.load_default(size=TEXT_PX)
    title = f"iteration {moment.iteration:,}   "
    modules = " + ".join(moment.modules) or "no transformation"
    columns = columns_of(len(order))
    rows, cell, top = math.ceil(len(order) / columns), side + GAP_PX, MARGIN_PX + 2 * TEXT_PX
    width = max(columns * cell - GAP_PX, math.ceil(font.getlength(title + modules)))
    frame = Image.new("RGB", (width + 2 * MARGIN_PX, top + rows * cell - GAP_PX + MARGIN_PX), PAPER)
    draw = ImageDraw.Draw(frame)
    draw.text((MARGIN_PX, MARGIN_PX), title, INK, font)
    draw.text((MARGIN_PX + font.getlength(title), MARGIN_PX), modules, PALE, font)
    pictures = moment.pictures()
    for place, cluster in enumerate(order):
        row, column = divmod(place, columns)
        paste(frame, pictures[cluster], (MARGIN_PX + column * cell, top + row * cell), side)
    return frame


def _widened(frame: Image.Image, width: int) -> Image.Image:
    wide = Image.new("RGB", (width, frame.height), PAPER)
    wide.paste(frame, (0, 0))
    return wide
