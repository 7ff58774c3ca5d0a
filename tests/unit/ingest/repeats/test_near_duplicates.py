from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipeline.config import IngestConfig
from pipeline.ingest.images import decode_square
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.repeats.near_duplicates import (
    HASH_BYTES,
    LOOK_BYTES,
    MOST_BITS,
    MOST_COLOR,
    Looks,
    as_looks,
    look_of,
    originals_of,
)
from tests.support.crawl_files import encoded, photograph

SHARED = Path(__file__).parents[5] / "shared"
CONFIG = IngestConfig()


def look(data: bytes) -> bytes:
    return look_of(decode_square(data, CONFIG).pixels)


def alike(a: bytes, b: bytes) -> bool:
    return originals_of(as_looks([a, b])) == {1: 0}


def greedy(looks: Looks, kept: int) -> dict[int, int]:
    """`originals_of` by comparing all pairs, bit by bit."""
    found: dict[int, int] = {}
    for later in range(kept, len(looks)):
        for earlier in range(later):
            bits = np.unpackbits(looks[earlier, :HASH_BYTES] ^ looks[later, :HASH_BYTES]).sum()
            color = np.abs(looks[earlier, HASH_BYTES:].astype(int) - looks[later, HASH_BYTES:]).max()
            if earlier not in found and bits <= MOST_BITS and color <= MOST_COLOR:
                found[later] = earlier
                break
    return found


@given(
    bases=arrays(np.uint8, (3, LOOK_BYTES)),
    flips=st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, 255), max_size=16)), min_size=1, max_size=12),
    kept=st.integers(0, 4),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_searching_by_parts_finds_what_comparing_all_pairs_finds(
    bases: Looks, flips: list[tuple[int, set[int]]], kept: int
) -> None:
    looks = []
    for base, places in flips:
        bits = np.unpackbits(bases[base, :HASH_BYTES])
        bits[list(places)] ^= 1
        looks.append(np.concatenate([np.packbits(bits), bases[base, HASH_BYTES:]]))
    stacked = np.stack(looks)
    assert originals_of(stacked, kept) == greedy(stacked, min(kept, len(stacked)))


def test_of_no_images_none_is_a_duplicate() -> None:
    assert originals_of(as_looks([])) == {}


def test_a_chain_of_likenesses_has_one_original() -> None:
    looks = np.zeros((3, LOOK_BYTES), np.uint8)
    looks[1, 0], looks[2, :2] = 0xFF, 0xFF  # 8 bits from one to the next, 16 from the first to the last
    assert originals_of(looks) == {1: 0}
    assert originals_of(looks, kept=2) == {2: 1}


@pytest.mark.parametrize("seed", range(5))
def test_a_photograph_posted_again_looks_the_same(seed: int) -> None:
    image = photograph(seed, 800, 640, details=24)
    original = look(encoded(image, quality=95))
    for again in (
        encoded(image, quality=50),
        encoded(image, "WEBP", quality=70),
        encoded(image.resize((400, 320), Image.Resampling.LANCZOS), quality=80),
        encoded(image.point(lambda value: min(255, round(1.04 * value)))),
    ):
        assert alike(original, look(again))


def test_other_pictures_do_not_look_the_same() -> None:
    looks = [look(encoded(photograph(seed, 300, 300))) for seed in range(60)]
    plain = [look(encoded(Image.new("RGB", (300, 300), color))) for color in ("black", "white", "red", "#400000")]
    assert originals_of(as_looks(looks + plain)) == {}


def test_pictures_that_differ_in_one_place_or_in_one_color_are_two() -> None:
    def scene(*boxes: tuple[tuple[int, int, int, int], str]) -> bytes:
        image = photograph(1, 640, 640, details=24)
        for box, color in boxes:
            image.paste(color, box)
        return look(encoded(image))

    passer_by = (300, 320, 380, 560)
    looks = [scene(), scene((passer_by, "black")), scene((passer_by, "red")), scene(((60, 320, 140, 560), "black"))]
    bottle = [Image.new("RGB", (600, 600), "white") for _ in range(3)]
    for image, color in zip(bottle, ("#103080", "#803010", "#108030"), strict=True):
        image.paste(color, (240, 150, 360, 500))
    assert originals_of(as_looks(looks + [look(encoded(image)) for image in bottle])) == {}


def test_a_thousand_reposts_of_one_picture_take_a_thousand_comparisons() -> None:
    looks = np.repeat(np.frombuffer(look(encoded(photograph(1, 300, 300))), np.uint8)[None], 20_000, axis=0)
    assert originals_of(looks) == dict.fromkeys(range(1, 20_000), 0)


def test_a_grey_picture_has_a_look() -> None:
    grey = np.asarray(photograph(1).convert("L"))[..., None]
    assert look_of(grey) == look_of(np.repeat(grey, 3, axis=2))
    assert len(look_of(grey)) == LOOK_BYTES


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared: photographs and make_crawl.py")
@pytest.mark.parametrize("seed", [7])
def test_other_photographs_of_a_view_are_no_duplicates(seed: int, tmp_path: Path) -> None:
    """A made crawl: 160 files of 8 views; every view image is kept, and finds itself again when it is recompressed."""
    command = [sys.executable, f"{SHARED}/tools/make_crawl.py", "--photos", f"{SHARED}/data/photos", "--n", "160"]
    subprocess.run([*command, "--seed", str(seed), "--out", str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    with (tmp_path / "labels.csv").open() as file:
        views = [row["file"] for row in csv.DictReader(file) if row["kind"] == "view"]
    looks, reposts = [], []
    for name in views:
        data = next(tmp_path.rglob(Path(name).name)).read_bytes()
        try:
            image = decode_square(data, IngestConfig(image_size=512, min_side=1))
        except Rejected:
            continue
        looks.append(look(data))
        square = Image.fromarray(image.pixels).resize((400, 400), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        square.save(buffer, "JPEG", quality=60)
        reposts.append(look(buffer.getvalue()))
    assert len(looks) > 100
    assert originals_of(as_looks(looks)) == {}
    found = originals_of(as_looks(looks + reposts), len(looks))
    assert all(original == repost - len(looks) for repost, original in found.items())
    assert len(found) >= 0.95 * len(looks)
