"""Drawing of pictures and of text in any script: what mosaics, strips and animations have in common."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

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


def draw_heading(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], title: str, subtitle: str, width: int, px: int, font: Font
) -> None:
    """Write `title` in `font`, followed by `subtitle` in a paler colour, on one line.

    The title is shortened if both are wider than `width`.
    """
    title_width = width - text_width(f"   {subtitle}", px)
    while len(title) > 1 and text_width(title, px, font) > title_width:
        title = title.rstrip("…")[:-1] + "…"
    x, line = at[0], at[1] + px
    draw.text((x, line), title, INK, font, anchor="ls")
    draw.text(
        (x + text_width(title, px, font) + text_width("   ", px), line), subtitle, PALE, font_of_size(px), anchor="ls"
    )


def text_px(tile_px: int) -> int:
    """Return the font size in px for text below tiles of `tile_px`."""
    return min(18, max(11, tile_px // 9))


def title_px(tile_px: int) -> int:
    """Return the font size in px for the heading above tiles of `tile_px`."""
    return min(30, max(15, tile_px // 6))


def text_width(text: str, px: int, font: Font | None = None) -> int:
    """Return the width in px of `text` in `font`, by default Pillow's own font of `px`."""
    return math.ceil((font or font_of_size(px)).getlength(text))


def legible(text: str, px: int) -> tuple[str, Font]:
    """Return `text` and the first font with all its characters, or a simplified text and Pillow's built-in font."""
    for font in _fonts(px):
        if all(_has(font, character) for character in text):
            return text, font
    built_in = font_of_size(px)
    plain = (unicodedata.normalize("NFKD", character)[0] for character in text)
    return "".join(character if _has(built_in, character) else "?" for character in plain), built_in


def _fonts(px: int) -> Iterator[Font]:
    """Yield Pillow's built-in font, then those of `SYSTEM_FONTS` that are installed."""
    yield font_of_size(px)
    for name in SYSTEM_FONTS:
        try:
            yield ImageFont.truetype(name, px)
        except OSError:
            continue


def _has(font: Font, character: str) -> bool:
    """Whether `font` has a glyph for `character`, rather than the placeholder for missing characters."""
    return bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


@lru_cache
def font_of_size(px: int) -> Font:
    """Return Pillow's own font of `px`."""
    return ImageFont.load_default(size=px)
