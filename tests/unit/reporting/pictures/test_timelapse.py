from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.clustering.snapshots import Snapshot, snapshot
from pipeline.clustering.trial import HistoryPoint, StageRecord, TrialResult
from pipeline.reporting.pictures.timelapse import FRAME_MS, LAST_MS, LIMIT_BYTES, draw_timelapse, frames_to_show


def prototypes(*greys: float) -> Tensor:
    return torch.tensor(greys, dtype=torch.float32)[:, None, None, None].expand(len(greys), 3, 16, 16)


def result(*stages: int) -> TrialResult:
    """A trial whose stages have the given numbers of windows, of ten iterations each."""
    n = sum(stages)
    history = [HistoryPoint(10 * i, 1.0, 1e-3, 1, 0, 0.5, 0.5) for i in range(1, n + 1)]
    names = [["color"][: bool(index)] for index in range(len(stages))]
    records = [StageRecord(modules, 10 * length, "converged") for modules, length in zip(names, stages, strict=True)]
    return TrialResult(2, 0, 1.0, 10 * n, 1, 1.0, 1, records, history, [])


def snapshots(windows: int) -> list[Snapshot]:
    return [snapshot(prototypes(0.5, 0.5), window, 10 * window, []) for window in range(windows)]


def test_the_trained_prototypes_come_last_and_once() -> None:
    frames = frames_to_show(snapshots(7), prototypes(0, 1), result(2, 4), examples=True)
    assert [frame.iteration for frame in frames] == [0, 10, 20, 30, 40, 50, 60]
    assert frames[-1].pictures()[:, 8, 8, 0].tolist() == [0, 255]
    assert frames[-1].modules == ["color"]


def test_without_examples_the_stage_that_began_with_photos_is_left_out() -> None:
    frames = frames_to_show(snapshots(7), prototypes(0, 1), result(2, 4), examples=False)
    assert [frame.iteration for frame in frames] == [30, 40, 50, 60]
    only_stage = frames_to_show(snapshots(7), prototypes(0, 1), result(6), examples=False)
    assert [frame.iteration for frame in only_stage] == [60]


def test_a_trial_without_snapshots_shows_what_was_trained() -> None:
    frames = frames_to_show([], prototypes(0, 1), result(2), examples=True)
    assert [frame.iteration for frame in frames] == [20]


def test_the_animation_shows_the_prototypes_in_the_mosaic_s_order_and_holds_the_last_frame() -> None:
    frames = [
        snapshot(prototypes(0, 0.5, 1), 0, 0, []),
        snapshot(prototypes(1, 0.5, 0), 1, 1_234, ["color", "projective"]),
    ]
    image = Image.open(io.BytesIO(draw_timelapse(frames, [2, 0, 1], 32)), formats=["WEBP"])
    assert getattr(image, "n_frames", 1) == 2
    found, durations = [], []
    for index in range(2):
        image.seek(index)
        image.load()
        durations.append(image.info["duration"])
        pixels = np.asarray(image.convert("L")).astype(int)
        rows = pixels.shape[0] - 16 - 16  # the middle of the only row of tiles, which has three columns
        found.append([int(pixels[rows, 16 + 36 * column + 16]) for column in range(3)])
    assert durations == [FRAME_MS, LAST_MS]
    assert np.allclose(found, [[255, 0, 128], [0, 255, 128]], atol=6)


@pytest.mark.slow
def test_a_large_animation_is_encoded_at_lower_quality() -> None:
    """An animation of noise, which would have 3 MB at the best quality."""
    generator = torch.Generator().manual_seed(0)
    frames = [snapshot(torch.rand(64, 3, 64, 64, generator=generator), i, i, []) for i in range(20)]
    data = draw_timelapse(frames, range(64), 64)
    assert getattr(Image.open(io.BytesIO(data), formats=["WEBP"]), "n_frames", 1) == 20
    assert len(data) <= LIMIT_BYTES
