from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.reporting.quality import Quality, quality_of
from pipeline.reporting.sums import ClusterSums

Array = np.ndarray[Any, np.dtype[np.float64]]


def noise(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, np.float32))


def edges(images: Array) -> Array:
    """(N, edges) differences to the right and the lower neighbour, one after the other."""
    n = len(images)
    right, below = images[..., :, 1:] - images[..., :, :-1], images[..., 1:, :] - images[..., :-1, :]
    return np.concatenate([right.reshape(n, -1), below.reshape(n, -1)], axis=1)


def score(photos: Tensor, transformed: Tensor, prototype: Tensor, aligned: Tensor | None = None) -> Quality:
    sums = ClusterSums.nothing(photos.shape[1:])
    sums.add(photos, transformed, photos if aligned is None else aligned, prototype)
    return quality_of(sums, prototype, 1.5)


def test_the_score_is_that_of_its_definition() -> None:
    photos, transformed, aligned = noise(0, 7, 3, 8, 6), noise(1, 7, 3, 8, 6), noise(2, 7, 3, 8, 6)
    prototype = noise(3, 3, 8, 6)
    found = score(photos, transformed, prototype, aligned)
    x, t, a, p = (part.double().numpy() for part in (photos, transformed, aligned, prototype))
    energy = (edges(x) ** 2).sum()
    mean = x.mean(axis=0, keepdims=True)
    assert found.detail == pytest.approx(1 - 7 / 6 * ((edges(x) - edges(t)) ** 2).sum() / energy, rel=1e-5)
    assert found.unaligned_detail == pytest.approx(1 - 7 / 6 * ((edges(x) - edges(mean)) ** 2).sum() / energy, rel=1e-5)
    assert found.explained == pytest.approx(1 - ((x - t) ** 2).sum() / ((x - mean) ** 2).sum(), rel=1e-5)
    assert found.sharpness == pytest.approx((edges(p[None]) ** 2).sum() / (energy / 7), rel=1e-5)
    assert found.spread == pytest.approx(np.sqrt(((a - p) ** 2).mean()), rel=1e-5)
    assert found.median_margin == 1.5


def test_a_prototype_that_matches_every_photo_is_perfect() -> None:
    photos = noise(0, 5, 3, 8, 8)
    assert score(photos, photos, photos[0]).quality == 1


def test_an_average_of_noise_is_worthless() -> None:
    photos = noise(0, 50, 3, 16, 16)
    mean = photos.mean(0)
    found = score(photos, mean.expand_as(photos), mean)
    assert found.quality == pytest.approx(0, abs=0.01)


def test_a_smooth_prototype_of_smooth_pictures_with_grain_scores_low_although_it_explains_them() -> None:
    ramp = torch.linspace(0, 1, 16).expand(3, 16, 16)
    gains = torch.linspace(0.3, 1, 40)[:, None, None, None]
    photos = gains * ramp + 0.05 * torch.from_numpy(np.random.default_rng(0).normal(size=(40, 3, 16, 16))).float()
    found = score(photos, gains * ramp, ramp)
    assert found.explained is not None
    assert found.explained > 0.8
    assert found.quality < 0.3


def test_what_explains_only_itself_counts_less_the_fewer_images_there_are() -> None:
    photos = noise(0, 2, 3, 16, 16)
    mean = photos.mean(0)
    assert score(photos, mean.expand_as(photos), mean).quality == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_can_be_told_of_fewer_than_two_images(n: int) -> None:
    photos = noise(0, n, 3, 8, 8)
    found = score(photos, photos, noise(1, 3, 8, 8))
    assert (found.quality, found.detail, found.explained, found.spread) == (0.0, None, None, None)


def test_plain_colours_have_no_edges_to_explain() -> None:
    photos = torch.tensor([0.2, 0.8])[:, None, None, None].expand(2, 3, 8, 8)
    found = score(photos, photos, photos[0])
    assert (found.quality, found.detail, found.explained) == (0.0, None, 1.0)


def test_parts_add_up_to_the_whole() -> None:
    photos, transformed, prototype = noise(0, 9, 3, 8, 8), noise(1, 9, 3, 8, 8), noise(2, 3, 8, 8)
    whole, first, second = (ClusterSums.nothing((3, 8, 8)) for _ in range(3))
    whole.add(photos, transformed, transformed, prototype)
    first.add(photos[:4], transformed[:4], transformed[:4], prototype)
    second.add(photos[4:], transformed[4:], transformed[4:], prototype)
    first += second
    assert first.images == whole.images
    torch.testing.assert_close(first.mean_CHW, photos.mean(0))
    torch.testing.assert_close(first.deviation_HW, whole.deviation_HW)
    assert quality_of(first, prototype, None).quality == pytest.approx(quality_of(whole, prototype, None).quality)
