from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import OrderBy
from pipeline.reporting.pictures import drawing
from pipeline.reporting.pictures.drawing import PAPER
from pipeline.reporting.pictures.mosaic import Tile, draw_mosaic, ordered
from pipeline.reporting.pictures.strip import Strip, draw_strip
from tests.support.made_collection import BLUE, GREEN, RED, Color, plain

TILE_PX = 32


def tile(cluster: int, size: int, color: Color) -> Tile:
    return Tile(cluster, size, size / 10, plain(color))


def box(image: Image.Image, color: Color) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the pixels of exactly this colour."""
    pixels = np.argwhere((np.asarray(image) == color).all(-1))
    (top, left), (bottom, right) = pixels.min(0), pixels.max(0) + 1
    return int(left), int(top), int(right), int(bottom)


def test_tiles_are_drawn_in_their_order() -> None:
    image = draw_mosaic("paris", "", [tile(0, 1, RED), tile(1, 7, GREEN), tile(2, 2, BLUE)], TILE_PX)
    corners = [box(image, color)[1::-1] for color in (RED, GREEN, BLUE)]
    assert corners == sorted(corners)


@pytest.mark.parametrize(("by", "expected"), [("quality", [2, 3, 1, 0]), ("size", [1, 2, 3, 0])])
def test_the_best_or_the_largest_cluster_comes_first(by: OrderBy, expected: list[int]) -> None:
    scores = [(1, 0.5), (7, 0.5), (2, 0.9), (2, 0.8)]
    tiles = [Tile(i, size, size / 12, plain(RED), quality) for i, (size, quality) in enumerate(scores)]
    assert [tile.cluster for tile in ordered(tiles, by)] == expected


@pytest.mark.parametrize("k", [1, 2, 7, 40])
def test_every_prototype_is_drawn_completely_and_without_overlap(k: int) -> None:
    colors = [(200, 5 * i, 250 - 5 * i) for i in range(k)]
    image = draw_mosaic("paris", "", [tile(i, i, color) for i, color in enumerate(colors)], TILE_PX)
    for color in colors:
        left, top, right, bottom = box(image, color)
        assert (right - left, bottom - top) == (TILE_PX, TILE_PX)


def test_tiles_are_wide_enough_for_two_shares() -> None:
    alone = [tile(0, 1, RED), tile(1, 7, GREEN)]
    compared = [replace(one, earlier_share=0.25) for one in alone]
    assert [one.share_label for one in compared] == ["25.0% to 10.0%", "25.0% to 70.0%"]
    lefts = [box(draw_mosaic("paris", "", tiles, TILE_PX), GREEN)[0] for tiles in (alone, compared)]
    assert lefts[1] > lefts[0]


def test_a_long_title_is_shortened_and_does_not_hide_the_subtitle() -> None:
    image = draw_mosaic("long " * 100, "1 prototype of 2 images", [tile(0, 2, RED)], TILE_PX)
    margin = np.asarray(image)[:, -10:]
    assert (margin == 255).all()
    assert image.width < 20 * TILE_PX


@pytest.mark.parametrize(("name", "shown"), [("café", "cafe"), ("東京2024", "??2024")])
def test_characters_without_a_font_are_replaced(monkeypatch: pytest.MonkeyPatch, name: str, shown: str) -> None:
    monkeypatch.setattr(drawing, "SYSTEM_FONTS", ("no such font.ttf",))
    pictures = [draw_mosaic(title, "", [tile(0, 2, RED)], TILE_PX) for title in (name, shown)]
    assert pictures[0] == pictures[1]


def test_a_system_font_is_used_for_characters_that_pillow_s_font_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fonts = Path(pytest.importorskip("matplotlib").get_data_path()) / "fonts" / "ttf"  # installed with MLflow
    monkeypatch.setattr(drawing, "SYSTEM_FONTS", ("no such font.ttf", str(fonts / "DejaVuSans.ttf")))
    shown = [draw_mosaic(title, "", [tile(0, 2, RED)], TILE_PX) for title in ("Москва", "Мвкоса", "??????")]
    assert len({image.tobytes() for image in shown}) == 3


def test_one_channel_is_drawn_grey() -> None:
    image = draw_mosaic("digits", "", [Tile(0, 1, 1.0, np.full((28, 28, 1), 77, np.uint8))], TILE_PX)
    left, top, right, bottom = box(image, (77, 77, 77))
    assert (right - left, bottom - top) == (TILE_PX, TILE_PX)


def test_a_tiny_picture_keeps_its_hard_edges() -> None:
    halves = np.concatenate([plain(RED, 8)[:, :4], plain(BLUE, 8)[:, 4:]], axis=1)
    image = draw_mosaic("tiny", "", [Tile(0, 1, 1.0, halves)], TILE_PX)
    assert box(image, RED)[2] == box(image, BLUE)[0]


def test_a_strip_shows_photo_then_aligned_prototype_then_photo_aligned_back() -> None:
    yellow = (250, 240, 10)
    strip = Strip(tile(3, 7, yellow), [plain(RED)] * 2, [plain(GREEN)] * 2, [plain(BLUE)] * 2)
    image = draw_strip(strip, TILE_PX)
    tops = [box(image, color)[1] for color in (RED, GREEN, BLUE)]
    assert tops == sorted(tops)
    assert len({box(image, color)[::2] for color in (RED, GREEN, BLUE)}) == 1
    assert box(image, yellow)[2] < box(image, RED)[0]


def test_the_strip_of_an_empty_cluster_shows_its_prototype_and_a_note() -> None:
    image = draw_strip(Strip(tile(3, 0, GREEN), [], [], []), TILE_PX)
    right_of_prototype = image.crop((box(image, GREEN)[2] + 4, box(image, GREEN)[1], image.width, image.height))
    blank = Image.new("RGB", right_of_prototype.size, PAPER)
    assert right_of_prototype.tobytes() != blank.tobytes()
