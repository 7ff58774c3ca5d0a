"""Pictures of a run: all prototypes side by side, and for one cluster its prototype among its nearest images."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from pipeline.config import OrderBy
from pipeline.reporting.pictures.pixels import Pixels, to_image

INK, PALE, PAPER, EDGE = "#1c1c1e", "#76767b", "#ffffff", "#dcdce0"

CRISP_BELOW_PX = 48
"""Pictures with a shorter side are enlarged with hard pixel edges: blurred, a digit of 28 px cannot be judged."""

SYSTEM_FONTS = (
    *("NotoSans-Regular.ttf", "DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "msyh.ttc", "msgothic.ttc"),
    *("malgun.ttf", "PingFang.ttc", "unifont.ttf"),
)
"""Where to look for the scripts that Pillow's own font, which is little more than ASCII, does not have."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """One prototype in the mosaic."""

    cluster: int
    size: int
    """Images assigned to it."""
    share: float
    """`size` as a part of all images, in [0, 1]."""
    picture: Pixels
    """uint8 (H, W, C)."""
    quality: float = 0.0
    """Label-free score in [0, 1]; see `quality.py`."""
    earlier_share: float | None = None
    """`share` among other images that these are compared with, if they are."""

    @property
    def shown_share(self) -> str:
        """`share` in percent, after what it is compared with."""
        return " to ".join(f"{share:.1%}" for share in (self.earlier_share, self.share) if share is not None)


@dataclass(frozen=True)
class Strip:
    """One cluster: its prototype and, per nearest image, three pictures; all uint8 (H, W, C)."""

    tile: Tile
    photos: Sequence[Pixels]
    aligned_prototypes: Sequence[Pixels]
    """The prototype, transformed to look like each photo."""
    aligned_photos: Sequence[Pixels]
    """Each photo, transformed to look like the prototype."""


def ordered(tiles: Sequence[Tile], by: OrderBy) -> list[Tile]:
    """`tiles`, highest `by` first; the other of quality and size decides among equals, then the index."""
    if by == "quality":
        return sorted(tiles, key=lambda tile: (-tile.quality, -tile.size, tile.cluster))
    return sorted(tiles, key=lambda tile: (-tile.size, -tile.quality, tile.cluster))


def columns_of(tiles: int) -> int:
    """Of a picture of so many tiles, somewhat wider than high."""
    return math.ceil(math.sqrt(tiles * 1.5))


def draw_mosaic(title: str, subtitle: str, tiles: Sequence[Tile], tile_px: int) -> Image.Image:
    """All `tiles` in their order, each with its index, size and share, after the share it is compared with, if any.

    Args:
        title: first words of the heading; cut where the picture is too narrow for it. Characters that no font on
            this machine has lose their accents or become question marks.
        subtitle: the rest of the heading, paler.
        tiles: at least one.
        tile_px: side of one prototype in the picture.
    """
    text_px, title_px = _text_px(tile_px), _title_px(tile_px)
    columns = columns_of(len(tiles))
    rows = math.ceil(len(tiles) / columns)
    widest = max(_width(f"#{tile.cluster}  {tile.size:,}   {tile.shown_share}", text_px) for tile in tiles)
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
        draw.text((x + cell, y), tile.shown_share, PALE, _font(text_px), anchor="ra")
    return canvas


def draw_strip(strip: Strip, tile_px: int) -> Image.Image:
    """The prototype, then a column per nearest image: photo, prototype aligned to it, photo aligned back.

    A cluster without images is drawn as its prototype and a note.
    """
    tile = strip.tile
    text_px, title_px = _text_px(tile_px), _title_px(tile_px)
    gap, margin = max(4, tile_px // 24), max(16, tile_px // 4)
    labelled = (
        ("photo", strip.photos),
        ("prototype aligned", strip.aligned_prototypes),
        ("photo aligned back", strip.aligned_photos),
    )
    note = "no image is closest to this prototype"
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
    """Draw `picture` with its left upper corner `at`, `side` px large, and a hairline around it."""
    image = to_image(picture)
    if min(image.size) < min(CRISP_BELOW_PX, side):
        # Whole multiples first, so that every pixel becomes a square of the same size.
        factor = math.ceil(side / min(image.size))
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    canvas.paste(image.resize((side, side), Image.Resampling.LANCZOS), at)
    x, y = at
    ImageDraw.Draw(canvas).rectangle((x - 1, y - 1, x + side, y + side), outline=EDGE)


def _heading(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], title: str, subtitle: str, width: int, px: int, font: Font
) -> None:
    """Write `title` in ink and `subtitle` paler behind it, cutting the title where both are wider than `width`.

    The title is written in `font`, and both on the same line.
    """
    room = width - _width(f"   {subtitle}", px)
    while len(title) > 1 and _width(title, px, font) > room:
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
    """`text` and the first font that has all its characters, or the part of it that Pillow's own font can show."""
    for font in _fonts(px):
        if all(_has(font, character) for character in text):
            return text, font
    own = _font(px)
    plain = (unicodedata.normalize("NFKD", character)[0] for character in text)
    return "".join(character if _has(own, character) else "?" for character in plain), own


def _fonts(px: int) -> Iterator[Font]:
    """Pillow's own font, then those of `SYSTEM_FONTS` that this machine has."""
    yield _font(px)
    for name in SYSTEM_FONTS:
        try:
            yield ImageFont.truetype(name, px)
        except OSError:
            continue


def _has(font: Font, character: str) -> bool:
    """Whether `font` has a glyph for `character`, instead of the box that stands for all it does not have."""
    return bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


@lru_cache
def _font(px: int) -> Font:
    return ImageFont.load_default(size=px)
