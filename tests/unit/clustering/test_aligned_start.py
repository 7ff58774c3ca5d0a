from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from pipeline.clustering.aligned_start import (
    AlignedStart,
    aligned_start,
    alignments,
    candidates_of,
    k_medoids,
    sample_size,
)
from pipeline.clustering.data.images import ImageSet
from pipeline.clustering.metrics import evaluate
from pipeline.clustering.model.build import build_method
from pipeline.clustering.prealignment import positions_in_prototype, prealign
from pipeline.config import ClusteringConfig, TransformName

CPU = torch.device("cpu")
SIZE = 32


def pictures(n: int, seed: int = 0) -> Tensor:
    """Return smooth random pictures (n, 3, SIZE, SIZE) in [0, 1]."""
    coarse = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return interpolate(coarse, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)


def moved(views: int, each: int, light: bool) -> tuple[ImageSet, Tensor, Tensor]:
    """Return images of `views` pictures, `each` moved, scaled and rotated, and the picture and the movement of each."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.arange(views).repeat_interleave(each)
    scale = 0.85 + 0.3 * torch.rand(len(truth), generator=generator)
    angle = 0.24 * torch.rand(len(truth), generator=generator) - 0.12
    shift = 0.4 * torch.rand(len(truth), 2, generator=generator) - 0.2
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = affine_grid(theta, [len(truth), 3, SIZE, SIZE], align_corners=False)
    images = grid_sample(pictures(views)[truth], grid, padding_mode="border", align_corners=False)
    if light:
        gain, bias = torch.rand(2, len(truth), 3, 1, 1, generator=generator)
        images = (0.3 + 0.6 * gain) * images + 0.1 * bias
    return ImageSet.of((images.clamp(0, 1) * 255).to(torch.uint8)), truth, theta


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(8, 20))
def test_few_medoids_are_chosen_greedily(seed: int, k: int, n: int) -> None:
    """The same choice by brute force in float64: each medoid minimises the sum of the distances to the nearest one."""
    assert candidates_of(n, k) >= n
    distance = np.random.default_rng(seed).random((n, n))
    chosen: list[int] = []
    for _ in range(k):
        nearest = np.minimum(distance[:, chosen].min(1), distance.max(1)) if chosen else distance.max(1)
        totals = [np.inf if j in chosen else np.minimum(nearest, distance[:, j]).sum() for j in range(n)]
        chosen.append(int(np.argmin(totals)))
    assert k_medoids(torch.from_numpy(distance), k, seed).tolist() == chosen


def test_seeds_choose_different_medoids_that_are_nearly_as_good() -> None:
    points = torch.rand(400, 2, generator=torch.Generator().manual_seed(0))
    distance = torch.cdist(points, points).square()
    found = [k_medoids(distance, 12, seed) for seed in range(5)]
    assert len({tuple(medoids.sort().values.tolist()) for medoids in found}) == 5
    totals = [float(distance[:, medoids].min(1).values.sum()) for medoids in found]
    assert max(totals) < 1.15 * min(totals)
    assert torch.equal(found[0], k_medoids(distance, 12, 0))


@pytest.mark.parametrize("light", [False, True])
def test_a_flat_image_is_like_no_other_and_is_not_aligned(light: bool) -> None:
    images, truth, _ = moved(views=3, each=10, light=light)
    pixels = torch.cat([images[torch.arange(30)], torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)])
    start = aligned_start(ImageSet.of(pixels), 4, 0, light, CPU)
    metrics = evaluate([*map(str, truth.tolist()), "flat", "flat"], start.cluster_S.numpy(), 4)
    assert metrics is not None and metrics.accuracy == 1.0
    assert (start.alignment_SK[30:] == 0).all()


def test_the_identity_is_an_alignment_and_all_are_different() -> None:
    found = alignments()
    assert len(found.unique(dim=0)) == len(found)
    assert torch.equal(found[0], torch.eye(2, 3))
    assert len(found) == 375


def test_positions_in_a_prototype_are_inverse_to_positions_in_the_image() -> None:
    points = torch.rand(7, 2) * 2 - 1
    in_prototype = positions_in_prototype(points)
    homogeneous = torch.cat([in_prototype, torch.ones(*in_prototype.shape[:2], 1)], dim=2)
    torch.testing.assert_close(homogeneous @ alignments().mT, points.expand_as(in_prototype))


@pytest.mark.parametrize("light", [False, True])
def test_moved_views_are_found_and_aligned(light: bool) -> None:
    images, truth, theta = moved(views=4, each=20, light=light)
    start = aligned_start(images, 4, 0, light, CPU)
    metrics = evaluate(truth.tolist(), start.cluster_S.numpy(), 4)
    assert metrics is not None and metrics.accuracy == 1.0
    # The medoid's own movement is part of the alignment found: medoid^-1 after image, in the frame of the picture.
    full = torch.cat([theta, torch.tensor([0.0, 0.0, 1.0]).expand(len(theta), 1, 3)], 1)
    medoid = full[start.medoid_K[start.cluster_S]]
    expected = torch.linalg.inv(full) @ medoid  # prototype's frame to the image
    found = alignments()[start.alignment_SK.gather(1, start.cluster_S[:, None])[:, 0].long()]
    error = (found - expected[:, :2]).abs().amax((1, 2))
    assert error.median() < 0.13  # candidates are 0.125 apart in shifts, and 0.12 in scale
    assert not torch.equal(found, torch.eye(2, 3).expand_as(found))


def test_prototypes_of_aligned_images_are_sharper_than_means() -> None:
    images, truth, _ = moved(views=4, each=20, light=False)
    start = aligned_start(images, 4, 0, any_light=False, device=CPU)
    prototypes = start.prototypes(any_light=False)
    pixels = images[torch.arange(80)].float() / 255
    means = torch.stack([pixels[truth == view].mean(0) for view in range(4)])
    assert prototypes.std((1, 2, 3)).mean() > 1.1 * means.std((1, 2, 3)).mean()


def test_copies_of_one_image_make_empty_clusters_that_keep_their_medoid() -> None:
    images = ImageSet.of((pictures(2).repeat_interleave(5, 0) * 255).to(torch.uint8))
    start = aligned_start(images, 6, 0, any_light=False, device=CPU)
    assert len(start.medoid_K.unique()) == 6
    distance = (start.prototypes(False)[:, None] - pictures(2)).abs().mean((2, 3, 4)).min(1).values
    assert (distance < 0.01).all()


def test_a_sample_has_images_for_all_prototypes_and_a_bounded_size() -> None:
    assert sample_size(400, (3, 64, 64), 12) == 400
    assert sample_size(100_000, (3, 64, 64), 12) == 1500
    assert sample_size(100_000, (3, 64, 64), 500) == 2000
    assert sample_size(100_000, (3, 64, 64), 640) == 2500
    assert sample_size(100_000, (3, 64, 64), 3000) == 3000
    assert sample_size(100_000, (3, 1024, 1024), 12) == 2**30 // (3 * 1024**2)
    assert sample_size(100_000, (3, 1024, 1024), 640) == 640


@pytest.mark.parametrize(
    ("transforms", "module"),
    [
        (["color", "projective"], "projective"),
        pytest.param(["morphological", "affine", "tps"], "affine", marks=pytest.mark.slow),
        pytest.param(["tps"], "tps", marks=pytest.mark.slow),
    ],
)
def test_predictors_learn_the_alignments(transforms: list[TransformName], module: str) -> None:
    images, _, _ = moved(views=3, each=40, light=False)
    start = aligned_start(images, 3, 0, "color" in transforms, CPU)
    config = ClusteringConfig(transforms=transforms, k=[3], precision="float32")
    assert config.aligned_module == module
    method = build_method(config, start.prototypes("color" in transforms), seed=0)
    method.activate(config.modules_at_start)
    loss = prealign(method, module, start, seed=0)
    assert loss < 0.2 * identity_loss(start, 3)
    others = [name for name in method.predicted_names if name != module]
    predicted = method.predict(start.images_SCHW[:8].float() / 255)
    assert all((predicted[name] == 0).all() for name in others)


def identity_loss(start: AlignedStart, k: int) -> float:
    """The loss of `prealign` if no prototype moves."""
    axis = torch.linspace(-0.75, 0.75, 4)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    squared_SK = (positions_in_prototype(points) - points).square().sum(-1).mean(-1)[start.alignment_SK.long()]
    weight_SK = torch.full(squared_SK.shape, 1 / (k - 1)).scatter_(1, start.cluster_S[:, None], 1.0)
    return float((weight_SK * squared_SK).sum(1).mean())
