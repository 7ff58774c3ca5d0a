from __future__ import annotations

import torch

from pipeline.reporting.pixels import to_pictures


def test_values_that_are_no_colours_are_drawn_all_the_same() -> None:
    values = torch.tensor([float("nan"), float("-inf"), -2.0, 0.5, 3.0, float("inf")])
    assert to_pictures(values.reshape(1, 1, 1, 6)).flatten().tolist() == [0, 0, 0, 128, 255, 255]
