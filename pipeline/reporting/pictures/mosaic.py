"""The mosaic: all prototypes of a run side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from pipeline.config import OrderBy
from pipeline.records import Pixels
from pipeline.reporting.pictures.drawing import (
    INK,
    PALE,
    PAPER,
    draw_heading,
    font_of_size,
    legible,
    paste,
    text_px,
    text_width,
    title_px,
)


@dataclass(frozen=True)
class Tile:
    """One prototype in the mosaic."""

    cluster: int
    size: int
    """Number of images assigned to the prototype."""
    share: float
    """`size` divided by the number of all images, in [0, 1]."""
    picture: Pixels
    """The prototype, uint8 (H, W, C)."""
    quality: float = 0.0
    """Label-free score in [0, 1]; see `survey/quality.py`."""
    earlier_share: float | None = None
    """Share among the images of an earlier crawl or run, if the two are compared."""

    @property
    def share_label(self) -> str:
        """`share` in percent, such as "40.0%", or "25.0% to 40.0%" if it is compared with an earlier share."""
        return " to ".join(f"{share:.1%}" for share in (self.earlier_share, self.share) if share is not None)


def ordered(tiles: Sequence[Tile], by: OrderBy) -> list[Tile]:
    """Return `tiles` sorted by quality or size, highest first; ties are broken by the other one, then by index."""
    if by == "quality":
        return sorted(tiles, key=lambda tile: (-tile.quality, -tile.size, tile.cluster))
    return sorted(tiles, key=lambda tile: (-tile.size, -tile.quality, tile.cluster))


def columns_of(tiles: int) -> int:
    """Return the number of columns of a picture of `tiles` tiles, which is somewhat wider than high."""
    return math.ceil(math.sqrt(tiles * 1.5))


def draw_mosaic(title: str, subtitle: str, tiles: Sequence[Tile], tile_px: int) -> Image.Image:
    """Draw all `tiles` in their order, each with its index, size and share.

    Args:
        title: first part of the heading; shortened if the picture is too narrow for it. Characters that no font on
            this machine contains lose their accents or become question marks.
        subtitle: second part of the heading, in a paler colour.
        tiles: at least one tile.
        tile_px: side of one prototype in the picture, in px.
    """
    text_size, title_size = text_px(tile_px), title_px(tile_px)
    columns = columns_of(len(tiles))
    rows = math.ceil(len(tiles) / columns)
    widest = max(text_width(f"#{tile.cluster}  {tile.size:,}   {tile.share_label}", text_size) for tile in tiles)
    cell, line = max(tile_px, widest), tile_px + text_size + 4
    gap, margin = max(10, tile_px // 8), max(16, tile_px // 4)
    title, font = legible(title, title_size)
    heading = text_width(title, title_size, font) + text_width(f"   {subtitle}", title_size)
    width = max(columns * (cell + gap) - gap, min(heading, 6 * tile_px)) + 2 * margin
    top = margin + title_size + gap + 4
    canvas = Image.new("RGB", (width, top + rows * (line + gap) - gap + margin), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw_heading(draw, (margin, margin), title, subtitle, width - 2 * margin, title_size, font)
    for index, tile in enumerate(tiles):
        x = margin + index % columns * (cell + gap)
        y = top + index // columns * (line + gap)
        paste(canvas, tile.picture, (x, y), tile_px)
        y += tile_px + 5
        name = f"#{tile.cluster}  "
        draw.text((x, y), name, INK, font_of_size(text_size))
        draw.text((x + text_width(name, text_size), y), f"{tile.size:,}", PALE, font_of_size(text_size))
        draw.text((x + cell, y), tile.share_label, PALE, font_of_size(text_size), anchor="ra")
    return canvas
