"""The strip of a cluster: its prototype among its nearest images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from pipeline.records import Pixels
from pipeline.reporting.pictures.drawing import (
    PALE,
    PAPER,
    draw_heading,
    font_of_size,
    paste,
    text_px,
    text_width,
    title_px,
)
from pipeline.reporting.pictures.mosaic import Tile


@dataclass(frozen=True)
class Strip:
    """The pictures of one cluster: its prototype, and three per nearest image; all uint8 (H, W, C)."""

    tile: Tile
    photos: Sequence[Pixels]
    aligned_prototypes: Sequence[Pixels]
    """The prototype, transformed to look like each photo."""
    aligned_photos: Sequence[Pixels]
    """Each photo, transformed to look like the prototype."""


def draw_strip(strip: Strip, tile_px: int) -> Image.Image:
    """Draw the prototype, and one column per nearest image: photo, prototype aligned to it, photo aligned back.

    For a cluster without images, draw the prototype and a note.
    """
    tile = strip.tile
    text_size, title_size = text_px(tile_px), title_px(tile_px)
    gap, margin = max(4, tile_px // 24), max(16, tile_px // 4)
    labelled = (
        ("photo", strip.photos),
        ("prototype aligned", strip.aligned_prototypes),
        ("photo aligned back", strip.aligned_photos),
    )
    note = "no image is assigned to this prototype"
    title = f"#{tile.cluster}"
    subtitle = f"{tile.size:,} {'image' if tile.size == 1 else 'images'}   {tile.share:.1%}"
    label = max(text_width(line, text_size) for text, _ in labelled for line in text.split(maxsplit=1))
    columns = len(strip.photos)
    prototype_px = tile_px if not columns else 2 * tile_px
    left = margin + prototype_px + margin
    inner = label + 2 * gap + columns * (tile_px + gap) - gap if columns else text_width(note, text_size)
    width = max(left + inner, margin + text_width(f"{title}   {subtitle}", title_size)) + margin
    top = margin + title_size + margin // 2 + 4
    body = 3 * (tile_px + gap) - gap if columns else prototype_px + text_size + 6

    canvas = Image.new("RGB", (width, top + body + margin), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw_heading(draw, (margin, margin), title, subtitle, width - 2 * margin, title_size, font_of_size(title_size))
    y = top + (body - prototype_px - text_size - 6) // 2
    paste(canvas, tile.picture, (margin, y), prototype_px)
    draw.text((margin, y + prototype_px + 6), "prototype", PALE, font_of_size(text_size))
    if not columns:
        draw.text((left, y + prototype_px // 2), note, PALE, font_of_size(text_size), anchor="lm")
    for row, (text, pictures) in enumerate(labelled if columns else ()):
        y = top + row * (tile_px + gap)
        lines = "\n".join(text.split(maxsplit=1))
        at = (left + label, y + tile_px // 2)
        draw.multiline_text(at, lines, PALE, font_of_size(text_size), anchor="rm", align="right", spacing=4)
        for column, picture in enumerate(pictures):
            paste(canvas, picture, (left + label + 2 * gap + column * (tile_px + gap), y), tile_px)
    return canvas
