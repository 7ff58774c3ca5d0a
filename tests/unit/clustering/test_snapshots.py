from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.clustering.snapshots import MAX_SNAPSHOTS, SIDE_PX, SNAPSHOT_PX, Snapshots, snapshot, snapshots_of


def plain(k: int, side: int = 16, channels: int = 3) -> Tensor:
    """Return `k` uniformly grey prototypes, from black to white."""
    greys = torch.arange(k).float() / max(1, k - 1)
    return greys[:, None, None, None].expand(k, channels, side, side)


def test_every_window_is_kept_until_there_are_many_and_never_too_many() -> None:
    snapshots = Snapshots()
    for window in range(1000):
        snapshots.take(plain(1, side=1), window, 10 * window, [])
        kept = [taken.window for taken in snapshots.taken]
        assert len(kept) <= MAX_SNAPSHOTS
        assert len(kept) >= min(window + 1, MAX_SNAPSHOTS // 2)
        gaps = set(np.diff(kept).tolist())
        assert len(gaps) <= 1, "evenly spaced"
        assert kept[0] == 0
        assert window - kept[-1] < max(gaps, default=1)
    assert [taken.iteration for taken in snapshots.taken[:3]] == [0, 320, 640]


@pytest.mark.parametrize("at", [0, 5, 47, 48, 49, 130])
def test_a_resumed_trial_has_the_snapshots_of_the_uninterrupted_one(at: int) -> None:
    whole, resumed = Snapshots(), Snapshots()
    for window in range(150):
        whole.take(plain(2) * (1 - window / 300), window, window, ["color"])
        if window <= at:
            resumed.taken = list(whole.taken)
        else:
            resumed.take(plain(2) * (1 - window / 300), window, window, ["color"])
    assert resumed.taken == whole.taken


def test_a_checkpoint_brings_snapshots_back() -> None:
    snapshots = Snapshots()
    snapshots.take(plain(3), 0, 0, [])
    snapshots.take(plain(3) / 2, 1, 60, ["color"])
    file = io.BytesIO()
    torch.save({"snapshots": snapshots.state()}, file)
    file.seek(0)
    assert snapshots_of(torch.load(file, weights_only=True)) == snapshots.taken
    assert snapshots_of({}) == [], "a checkpoint of an earlier version"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("k", "side", "expected"), [(1, 28, 28), (5, 28, 28), (7, 128, 64), (160, 128, 40)])
def test_pictures_are_the_prototypes_in_their_order(k: int, side: int, expected: int, channels: int) -> None:
    taken = snapshot(plain(k, side, channels), 0, 0, [])
    pictures = taken.pictures()
    assert pictures.shape == (k, expected, expected, 3)
    means = pictures.astype(float).mean((1, 2, 3))
    assert abs(means - 255 * plain(k)[:, 0, 0, 0].numpy()).max() < 3


def test_values_outside_0_to_1_are_clamped() -> None:
    assert snapshot(torch.tensor([-2.0, 3.0])[:, None, None, None].expand(2, 3, 8, 8), 0, 0, []).pictures()[
        :, 4, 4, 0
    ].tolist() == [0, 255]


@pytest.mark.parametrize("k", [4, 64, 160, 1000])
def test_even_prototypes_of_noise_stay_small(k: int) -> None:
    noise = torch.rand(k, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    taken = snapshot(noise, 0, 0, [])
    height, width = taken.pictures().shape[1:3]
    assert max(height, width) <= SIDE_PX
    assert k * height * width <= SNAPSHOT_PX
    assert MAX_SNAPSHOTS * len(taken.webp) < 12e6
