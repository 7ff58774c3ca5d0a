from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.reporting.survey.quality import Quality, quality_of
from pipeline.reporting.survey.sums import ClusterSums

Array = np.ndarray[Any, np.dtype[np.float64]]


def noise(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, np.float32))


def edges(images: Array) -> Array:
    """Return the differences to the right neighbours, followed by those to the lower neighbours: (N, edges)."""
    n = len(images)
    right, below = images[..., :, 1:] - images[..., :, :-1], images[..., 1:, :] - images[..., :-1, :]
    return np.concatenate([right.reshape(n, -1), below.reshape(n, -1)], axis=1)


def outlines(images: Array) -> Array:
    """Return the edges of (N, C, 32, 48) images averaged down to 16 x 16, in blocks of 2 x 3 pixels."""
    n, c = images.shape[:2]
    return edges(images.reshape(n, c, 16, 2, 16, 3).mean(axis=(3, 5)))


def score(photos: Tensor, transformed: Tensor, prototype: Tensor, aligned: Tensor | None = None) -> Quality:
    sums = ClusterSums.zeros(photos.shape[1:])
    sums.add(photos, transformed, photos if aligned is None else aligned, prototype)
    return quality_of(sums, prototype, 1.5)


def test_the_score_follows_its_definition() -> None:
    ramp = torch.linspace(0, 1, 48).expand(3, 32, 48)
    photos = 0.3 * noise(0, 7, 3, 32, 48) + ramp.roll(5, dims=2) * torch.linspace(0.2, 1, 7)[:, None, None, None]
    transformed, aligned, prototype = photos + 0.1 * noise(1, 7, 3, 32, 48), noise(2, 7, 3, 32, 48), ramp
    found = score(photos, transformed, prototype, aligned)
    x, t, a, p = (part.double().numpy() for part in (photos, transformed, aligned, prototype))
    mean = x.mean(axis=0, keepdims=True)
    energy = (outlines(x) ** 2).sum()
    unexplained = 7 / 6 * ((outlines(x) - outlines(t)) ** 2).sum() / energy
    left_over = 7 / 6 * ((outlines(x) - outlines(mean)) ** 2).sum() / energy
    assert found.detail == pytest.approx(1 - unexplained, rel=1e-5)
    assert found.unaligned_detail == pytest.approx(1 - left_over, rel=1e-4)
    assert found.quality == pytest.approx(1 - unexplained / max(left_over, 0.5), rel=1e-4)
    assert 0 < found.quality < 1
    assert found.explained == pytest.approx(1 - ((x - t) ** 2).sum() / ((x - mean) ** 2).sum(), rel=1e-5)
    assert found.sharpness == pytest.approx((edges(p[None]) ** 2).sum() / ((edges(x) ** 2).sum() / 7), rel=1e-5)
    assert found.spread == pytest.approx(np.sqrt(((a - p) ** 2).mean()), rel=1e-5)
    assert found.median_margin == 1.5


def test_photos_that_are_alike_without_alignment_score_high() -> None:
    photos = noise(0, 1, 3, 32, 32) + 0.02 * noise(1, 30, 3, 32, 32)
    mean = photos.mean(0)
    assert score(photos, mean.expand_as(photos), mean).quality > 0.9


def test_outlines_that_the_mean_explains_do_not_count() -> None:
    frame = torch.zeros(3, 32, 32)
    frame[:, 4:-4, 4:-4] = 1
    photos = frame * noise(1, 40, 3, 32, 32)[..., :1, :1]
    mean = photos.mean(0)
    found = score(photos, mean.expand_as(photos), mean)
    assert found.detail is not None
    assert found.detail > 0.6
    assert found.quality < 0.6


def test_alignment_that_is_a_pixel_off_still_counts() -> None:
    y = torch.linspace(0, 6 * torch.pi, 64)
    view = (torch.sin(y)[:, None] * torch.cos(y) / 2 + 0.5).expand(3, 64, 64)
    view = view + 0.2 * noise(0, 3, 64, 64)
    photos = torch.stack([view.roll((3 * i, 5 * i), dims=(1, 2)) for i in range(12)])
    found = score(photos, photos.roll(1, dims=3), view)
    assert found.quality > 0.8


def test_a_prototype_that_matches_every_photo_has_quality_one() -> None:
    photos = noise(0, 5, 3, 8, 8)
    assert score(photos, photos, photos[0]).quality == 1


def test_an_average_of_noise_has_quality_zero() -> None:
    photos = noise(0, 50, 3, 16, 16)
    mean = photos.mean(0)
    found = score(photos, mean.expand_as(photos), mean)
    assert found.quality == pytest.approx(0, abs=0.01)


def test_a_smooth_prototype_of_smooth_noisy_pictures_scores_low_although_it_explains_their_variance() -> None:
    ramp = torch.linspace(0, 1, 16).expand(3, 16, 16)
    gains = torch.linspace(0.3, 1, 40)[:, None, None, None]
    photos = gains * ramp + 0.05 * torch.from_numpy(np.random.default_rng(0).normal(size=(40, 3, 16, 16))).float()
    found = score(photos, gains * ramp, ramp)
    assert found.explained is not None
    assert found.explained > 0.8
    assert found.quality < 0.3


def test_the_score_is_corrected_for_small_clusters() -> None:
    photos = noise(0, 2, 3, 16, 16)
    mean = photos.mean(0)
    assert score(photos, mean.expand_as(photos), mean).quality == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("n", [0, 1])
def test_the_score_of_fewer_than_two_images_is_undefined(n: int) -> None:
    photos = noise(0, n, 3, 8, 8)
    found = score(photos, photos, noise(1, 3, 8, 8))
    assert (found.quality, found.detail, found.explained, found.spread) == (0.0, None, None, None)


def test_plain_colours_have_no_edges_to_explain() -> None:
    photos = torch.tensor([0.2, 0.8])[:, None, None, None].expand(2, 3, 8, 8)
    found = score(photos, photos, photos[0])
    assert (found.quality, found.detail, found.explained) == (0.0, None, 1.0)


def test_parts_add_up_to_the_whole() -> None:
    photos, transformed, prototype = noise(0, 9, 3, 8, 8), noise(1, 9, 3, 8, 8), noise(2, 3, 8, 8)
    whole, first, second = (ClusterSums.zeros((3, 8, 8)) for _ in range(3))
    whole.add(photos, transformed, transformed, prototype)
    first.add(photos[:4], transformed[:4], transformed[:4], prototype)
    second.add(photos[4:], transformed[4:], transformed[4:], prototype)
    first += second
    assert first.images == whole.images
    torch.testing.assert_close(first.mean_CHW, photos.mean(0))
    torch.testing.assert_close(first.deviation_HW, whole.deviation_HW)
    assert quality_of(first, prototype, None).quality == pytest.approx(quality_of(whole, prototype, None).quality)
