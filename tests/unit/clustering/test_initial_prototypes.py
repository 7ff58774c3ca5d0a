from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.clustering.data.images import ImageSet
from pipeline.clustering.initial_prototypes import (
    STANDARD_DEVIATION,
    STANDARD_MEAN,
    initial_prototypes,
    standardised,
)


def levels(values: list[int], copies: int, size: int = 20) -> Tensor:
    """Return `copies` flat images (N, 1, size, size) of each value, uint8."""
    flat = torch.tensor(values, dtype=torch.uint8).repeat_interleave(copies)
    return flat[:, None, None, None].expand(-1, 1, size, size).contiguous()


def test_random_prototypes_are_different_images() -> None:
    images = levels(list(range(10)), 1)
    chosen = initial_prototypes(ImageSet.of(images), 10, 4, "random", any_light=False)[:, 0, 0, 0] * 255
    assert sorted(chosen.round().int().tolist()) == list(range(10))


@pytest.mark.parametrize("seed", range(3))
def test_kmeans_finds_tight_groups(seed: int) -> None:
    chosen = initial_prototypes(ImageSet.of(levels([0, 120, 250], 40)), 3, seed, "k-means", any_light=False)
    assert chosen.shape == (3, 1, 20, 20)
    assert sorted((chosen[:, 0, 0, 0] * 255).round().int().tolist()) == [0, 120, 250]


@pytest.mark.parametrize("size", [24, 64])
@pytest.mark.parametrize("inverted", [False, True])
def test_groups_are_found_in_any_light(size: int, inverted: bool) -> None:
    """Three bright squares in as many places, each channel with another contrast; with `inverted`, half are dark."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.zeros(3, 1, size, size)
    for index, start in enumerate((0, size // 3, 2 * size // 3)):
        shapes[index, :, start : start + size // 4, start : start + size // 4] = 1
    gain = 0.2 + 0.3 * torch.rand(60, 3, 1, 1, generator=generator)
    if inverted:
        gain *= torch.where(torch.rand(60, 1, 1, 1, generator=generator) < 0.5, -1, 1)
    pictures = 0.5 + gain * shapes.repeat_interleave(20, 0)
    images = ImageSet.of((pictures * 255).to(torch.uint8))
    found = initial_prototypes(images, 3, 0, "k-means", any_light=True)
    brightest = found.mean(1).flatten(1).argmax(1)
    places = {(int(i) // size // (size // 3), int(i) % size // (size // 3)) for i in brightest}
    assert places == {(0, 0), (1, 1), (2, 2)}


def test_fewer_different_images_than_prototypes_are_completed() -> None:
    found = initial_prototypes(ImageSet.of(levels([10, 200], 5)), 6, 0, "k-means", any_light=False)
    assert {round(float(p[0, 0, 0]) * 255) for p in found} == {10, 200}


def test_a_standardised_image_has_the_standard_light() -> None:
    image = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.1
    light = standardised(image)
    torch.testing.assert_close(light.mean((2, 3)), torch.full((5, 3), STANDARD_MEAN))
    torch.testing.assert_close(light.std((2, 3), correction=0), torch.full((5, 3), STANDARD_DEVIATION))
    assert standardised(torch.full((1, 3, 8, 8), 0.3)).isfinite().all()
