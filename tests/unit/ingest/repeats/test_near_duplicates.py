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
    MAX_COLOR_DIFFERENCE,
    MAX_DIFFERENT_BITS,
    SIGNATURE_BYTES,
    Signatures,
    as_signatures,
    originals_of,
    signature_of,
)
from tests.support.crawl_files import encoded, photograph

SHARED = Path(__file__).parents[5] / "shared"
CONFIG = IngestConfig()


def signature(data: bytes) -> bytes:
    return signature_of(decode_square(data, CONFIG).pixels)


def alike(a: bytes, b: bytes) -> bool:
    return originals_of(as_signatures([a, b])) == {1: 0}


def greedy(signatures: Signatures, kept: int) -> dict[int, int]:
    """Reference for `originals_of` that compares all pairs bit by bit."""
    found: dict[int, int] = {}
    for later in range(kept, len(signatures)):
        for earlier in range(later):
            bits = np.unpackbits(signatures[earlier, :HASH_BYTES] ^ signatures[later, :HASH_BYTES]).sum()
            color = np.abs(signatures[earlier, HASH_BYTES:].astype(int) - signatures[later, HASH_BYTES:]).max()
            if earlier not in found and bits <= MAX_DIFFERENT_BITS and color <= MAX_COLOR_DIFFERENCE:
                found[later] = earlier
                break
    return found


@given(
    bases=arrays(np.uint8, (3, SIGNATURE_BYTES)),
    flips=st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, 255), max_size=16)), min_size=1, max_size=12),
    kept=st.integers(0, 4),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_searching_by_parts_finds_what_comparing_all_pairs_finds(
    bases: Signatures, flips: list[tuple[int, set[int]]], kept: int
) -> None:
    signatures = []
    for base, positions in flips:
        bits = np.unpackbits(bases[base, :HASH_BYTES])
        bits[list(positions)] ^= 1
        signatures.append(np.concatenate([np.packbits(bits), bases[base, HASH_BYTES:]]))
    stacked = np.stack(signatures)
    assert originals_of(stacked, kept) == greedy(stacked, min(kept, len(stacked)))


def test_of_no_images_none_is_a_duplicate() -> None:
    assert originals_of(as_signatures([])) == {}


def test_a_chain_of_likenesses_has_one_original() -> None:
    signatures = np.zeros((3, SIGNATURE_BYTES), np.uint8)
    signatures[1, 0], signatures[2, :2] = 0xFF, 0xFF  # neighbours differ in 8 bits, the first and the last in 16
    assert originals_of(signatures) == {1: 0}
    assert originals_of(signatures, kept=2) == {2: 1}


@pytest.mark.parametrize("seed", range(5))
def test_a_photograph_posted_again_looks_the_same(seed: int) -> None:
    image = photograph(seed, 800, 640, details=24)
    original = signature(encoded(image, quality=95))
    for again in (
        encoded(image, quality=50),
        encoded(image, "WEBP", quality=70),
        encoded(image.resize((400, 320), Image.Resampling.LANCZOS), quality=80),
        encoded(image.point(lambda value: min(255, round(1.04 * value)))),
    ):
        assert alike(original, signature(again))


def test_other_pictures_do_not_look_the_same() -> None:
    signatures = [signature(encoded(photograph(seed, 300, 300))) for seed in range(60)]
    plain = [signature(encoded(Image.new("RGB", (300, 300), color))) for color in ("black", "white", "red", "#400000")]
    assert originals_of(as_signatures(signatures + plain)) == {}


def test_pictures_that_differ_in_one_place_or_in_one_color_are_two() -> None:
    def scene(*boxes: tuple[tuple[int, int, int, int], str]) -> bytes:
        image = photograph(1, 640, 640, details=24)
        for box, color in boxes:
            image.paste(color, box)
        return signature(encoded(image))

    passer_by = (300, 320, 380, 560)
    signatures = [
        scene(),
        scene((passer_by, "black")),
        scene((passer_by, "red")),
        scene(((60, 320, 140, 560), "black")),
    ]
    bottle = [Image.new("RGB", (600, 600), "white") for _ in range(3)]
    for image, color in zip(bottle, ("#103080", "#803010", "#108030"), strict=True):
        image.paste(color, (240, 150, 360, 500))
    assert originals_of(as_signatures(signatures + [signature(encoded(image)) for image in bottle])) == {}


def test_a_thousand_reposts_of_one_picture_take_a_thousand_comparisons() -> None:
    signatures = np.repeat(np.frombuffer(signature(encoded(photograph(1, 300, 300))), np.uint8)[None], 20_000, axis=0)
    assert originals_of(signatures) == dict.fromkeys(range(1, 20_000), 0)


def test_a_grey_picture_has_a_signature() -> None:
    grey = np.asarray(photograph(1).convert("L"))[..., None]
    assert signature_of(grey) == signature_of(np.repeat(grey, 3, axis=2))
    assert len(signature_of(grey)) == SIGNATURE_BYTES


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs photographs and make_crawl.py in ../shared")
@pytest.mark.parametrize("seed", [7])
def test_other_photographs_of_a_view_are_no_duplicates(seed: int, tmp_path: Path) -> None:
    """Keep all images of 8 views in a generated crawl of 160 files, and find the originals of recompressed copies."""
    command = [sys.executable, f"{SHARED}/tools/make_crawl.py", "--photos", f"{SHARED}/data/photos", "--n", "160"]
    subprocess.run([*command, "--seed", str(seed), "--out", str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    with (tmp_path / "labels.csv").open() as file:
        views = [row["file"] for row in csv.DictReader(file) if row["kind"] == "view"]
    signatures, reposts = [], []
    for name in views:
        data = next(tmp_path.rglob(Path(name).name)).read_bytes()
        try:
            image = decode_square(data, IngestConfig(image_size=512, min_side=1))
        except Rejected:
            continue
        signatures.append(signature(data))
        square = Image.fromarray(image.pixels).resize((400, 400), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        square.save(buffer, "JPEG", quality=60)
        reposts.append(signature(buffer.getvalue()))
    assert len(signatures) > 100
    assert originals_of(as_signatures(signatures)) == {}
    found = originals_of(as_signatures(signatures + reposts), len(signatures))
    assert all(original == repost - len(signatures) for repost, original in found.items())
    assert len(found) >= 0.95 * len(signatures)
