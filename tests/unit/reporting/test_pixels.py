from __future__ import annotations

import numpy as np
import torch

from pipeline.reporting.pixels import png, read_png, to_image, to_pictures


def test_values_outside_the_range_of_colours_are_clamped() -> None:
    values = torch.tensor([float("nan"), float("-inf"), -2.0, 0.5, 3.0, float("inf")])
    assert to_pictures(values.reshape(1, 1, 1, 6)).flatten().tolist() == [0, 0, 0, 128, 255, 255]


def test_a_picture_is_unchanged_after_encoding_and_decoding() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    assert np.array_equal(read_png(png(to_image(picture))), picture)
