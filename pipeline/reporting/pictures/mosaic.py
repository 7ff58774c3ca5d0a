"""Still pictures of a run: the mosaic of all prototypes, and the strip of one prototype with its nearest images."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from pipeline.config import OrderBy
from pipeline.records import Pixels
from pipeline.reporting.pixels import to_image

INK, PALE, PAPER, EDGE = "#1c1c1e", "#76767b", "#ffffff", "#dcdce0"
"""Colours of text, secondary text, background and outlines."""

CRISP_BELOW_PX = 48
"""Pictures with a side below this are enlarged with hard pixel edges, as a blurred digit of 28 px is hard to judge."""

SYSTEM_FONTS = (
    *("NotoSans-Regular.ttf", "DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "msyh.ttc", "msgothic.ttc"),
    *("malgun.ttf", "PingFang.ttc", "unifont.ttf"),
)
"""Fonts for scripts that Pillow's built-in font lacks, which covers little more than ASCII."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


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


@dataclass(frozen=True)
class Strip:
    """The pictures of one cluster: its prototype, and three per nearest image; all uint8 (H, W, C)."""

    tile: Tile
    photos: Sequence[Pixels]
    aligned_prototypes: Sequence[Pixels]
    """The prototype, transformed to look like each photo."""
    aligned_photos: Sequence[Pixels]
    """Each photo, transformed to look like the prototype."""


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
    text_px, title_px = _text_px(tile_px), _title_px(tile_px)
    columns = columns_of(len(tiles))
    rows = math.ceil(len(tiles) / columns)
    widest = max(_width(f"#{tile.cluster}  {tile.size:,}   {tile.share_label}", text_px) for tile in tiles)
    cell, line = max(tile_px, widest), tile_px + text_px + 4
    gap, margin = max(10, tile_px // 8), max(16, tile_px // 4)
    title, font = _legible(title, title_px)
    heading = _width(title, title_px, font) + _width(f"   {subtitle}", title_px)
    width = max(columns * (cell + gap) - gap, min(heading, 6 * tile_px)) + 2 * margin
    top = margin + title_px + gap + 4
    canvas = Image.new("RGB", (width, top + rows * (line + gap) - gap + margin), PAPER)
    draw = ImageDraw.Draw(canvas)
    _heading(draw, (margin, margin), title, subtitle, width - 2 * margin, title_px, font)
    for index, tile in enumerate(tiles):
        x = margin + index % columns * (cell + gap)
        y = top + index // columns * (line + gap)
        paste(canvas, tile.picture, (x, y), tile_px)
        y += tile_px + 5
        name = f"#{tile.cluster}  "
        draw.text((x, y), name, INK, _font(text_px))
        draw.text((x + _width(name, text_px), y), f"{tile.size:,}", PALE, _font(text_px))
        draw.text((x + cell, y), tile.share_label, PALE, _font(text_px), anchor="ra")
    return canvas


def draw_strip(strip: Strip, tile_px: int) -> Image.Image:
    """Draw the prototype, and one column per nearest image: photo, prototype aligned to it, photo aligned back.

    For a cluster without images, draw the prototype and a note.
    """
    tile = strip.tile
    text_px, title_px = _text_px(tile_px), _title_px(tile_px)
    gap, margin = max(4, tile_px // 24), max(16, tile_px // 4)
    labelled = (
        ("photo", strip.photos),
        ("prototype aligned", strip.aligned_prototypes),
        ("photo aligned back", strip.aligned_photos),
    )
    note = "no image is assigned to this prototype"
    title = f"#{tile.cluster}"
    subtitle = f"{tile.size:,} {'image' if tile.size == 1 else 'images'}   {tile.share:.1%}"
    label = max(_width(line, text_px) for text, _ in labelled for line in text.split(maxsplit=1))
    columns = len(strip.photos)
    prototype_px = tile_px if not columns else 2 * tile_px
    left = margin + prototype_px + margin
    inner = label + 2 * gap + columns * (tile_px + gap) - gap if columns else _width(note, text_px)
    width = max(left + inner, margin + _width(f"{title}   {subtitle}", title_px)) + margin
    top = margin + title_px + margin // 2 + 4
    body = 3 * (tile_px + gap) - gap if columns else prototype_px + text_px + 6

    canvas = Image.new("RGB", (width, top + body + margin), PAPER)
    draw = ImageDraw.Draw(canvas)
    _heading(draw, (margin, margin), title, subtitle, width - 2 * margin, title_px, _font(title_px))
    y = top + (body - prototype_px - text_px - 6) // 2
    paste(canvas, tile.picture, (margin, y), prototype_px)
    draw.text((margin, y + prototype_px + 6), "prototype", PALE, _font(text_px))
    if not columns:
        draw.text((left, y + prototype_px // 2), note, PALE, _font(text_px), anchor="lm")
    for row, (text, pictures) in enumerate(labelled if columns else ()):
        y = top + row * (tile_px + gap)
        lines = "\n".join(text.split(maxsplit=1))
        at = (left + label, y + tile_px // 2)
        draw.multiline_text(at, lines, PALE, _font(text_px), anchor="rm", align="right", spacing=4)
        for column, picture in enumerate(pictures):
            paste(canvas, picture, (left + label + 2 * gap + column * (tile_px + gap), y), tile_px)
    return canvas


def paste(canvas: Image.Image, picture: Pixels, at: tuple[int, int], side: int) -> None:
    """Draw `picture` with a thin outline; its upper left corner is `at`, and its side is `side` px."""
    image = to_image(picture)
    if min(image.size) < min(CRISP_BELOW_PX, side):
        # First enlarge by an integer factor, so that all pixels become squares of the same size.
        factor = math.ceil(side / min(image.size))
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    canvas.paste(image.resize((side, side), Image.Resampling.LANCZOS), at)
    x, y = at
    ImageDraw.Draw(canvas).rectangle((x - 1, y - 1, x + side, y + side), outline=EDGE)


def _heading(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], title: str, subtitle: str, width: int, px: int, font: Font
) -> None:
    """Write `title` in `font`, followed by `subtitle` in a paler colour, on one line.

    The title is shortened if both are wider than `width`.
    """
    title_width = width - _width(f"   {subtitle}", px)
    while len(title) > 1 and _width(title, px, font) > title_width:
        title = title.rstrip("…")[:-1] + "…"
    x, line = at[0], at[1] + px
    draw.text((x, line), title, INK, font, anchor="ls")
    draw.text((x + _width(title, px, font) + _width("   ", px), line), subtitle, PALE, _font(px), anchor="ls")


def _text_px(tile_px: int) -> int:
    return min(18, max(11, tile_px // 9))


def _title_px(tile_px: int) -> int:
    return min(30, max(15, tile_px // 6))


def _width(text: str, px: int, font: Font | None = None) -> int:
    return math.ceil((font or _font(px)).getlength(text))


def _legible(text: str, px: int) -> tuple[str, Font]:
    """Return `text` and the first font with all its characters, or a simplified text and Pillow's built-in font."""
    for font in _fonts(px):
        if all(_has(font, character) for character in text):
            return text, font
    built_in = _font(px)
    plain = (unicodedata.normalize("NFKD", character)[0] for character in text)
    return "".join(character if _has(built_in, character) else "?" for character in plain), built_in


def _fonts(px: int) -> Iterator[Font]:
    """Yield Pillow's built-in font, then those of `SYSTEM_FONTS` that are installed."""
    yield _font(px)
    for name in SYSTEM_FONTS:
        try:
            yield ImageFont.truetype(name, px)
        except OSError:
            continue


def _has(font: Font, character: str) -> bool:
    """Whether `font` has a glyph for `character`, rather than the placeholder for missing characters."""
    return bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


@lru_cache
def _font(px: int) -> Font:
    return ImageFont.load_default(size=px)
