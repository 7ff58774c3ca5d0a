from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.reporting.pictures.thumbnails import ThumbnailForm, thumbnail
from tests.support.made_collection import RED, plain


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=["WEBP"])


def test_a_large_picture_is_made_smaller() -> None:
    assert opened(thumbnail(plain(RED, 128), ThumbnailForm(96, 3000))).size == (96, 96)


def test_a_small_picture_keeps_its_size() -> None:
    assert opened(thumbnail(np.zeros((28, 28, 1), np.uint8), ThumbnailForm(96, 3000))).size == (28, 28)


@pytest.mark.parametrize("limit_bytes", [4000, 1500, 300])
def test_even_noise_stays_within_the_limit(limit_bytes: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    data = thumbnail(noise, ThumbnailForm(96, limit_bytes))
    assert len(data) <= limit_bytes
    opened(data).load()


def test_a_picture_within_the_limit_has_the_best_quality() -> None:
    picture = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    shown = np.asarray(opened(thumbnail(picture, ThumbnailForm(64, 10_000))).convert("RGB")).astype(int)
    assert abs(shown - picture).mean() < 3
