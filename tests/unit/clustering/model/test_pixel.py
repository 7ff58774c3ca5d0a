"""The baselines: directly optimised transformations, and none at all."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture
from torch import Tensor

from pipeline.clustering.model.build import build_method
from pipeline.clustering.model.dti import DTI
from pipeline.config import ClusteringConfig
from tests.support import dense


def blobs(n: int) -> Tensor:
    """(n, 1, 16, 16): one soft square each, about the middle, moved by up to 2 px."""
    generator = torch.Generator().manual_seed(0)
    centre = 7.5 + 4 * (torch.rand(n, 2, generator=generator) - 0.5)
    axis = torch.arange(16)
    distance = (axis - centre[:, :, None]).abs()
    y, x = (3 - distance).clamp(0, 1).unbind(1)
    return (y[:, :, None] * x[:, None, :])[:, None]


@pytest.mark.parametrize("method", ["ti-gmm", "ti-kmeans"])
def test_direct_alignment_descends_to_the_image(method: str) -> None:
    """A moved square: more steps leave less of the identity's loss, and the score is that of the parameters."""
    images = blobs(9)
    losses = []
    for steps in (1, 10, 60):
        config = ClusteringConfig(method=method, transforms=["affine"], k=[2], alignment_steps=steps)
        model = build_method(config, images[:2], seed=0)
        model.activate(1)
        assignment = model.assign(images[2:])
        losses.append(float(assignment.loss_B.mean()))
        for b, k in enumerate(assignment.cluster_B):
            beta = {"affine": assignment.parameters["affine"][b].double()}
            moved = dense.transform(images[k].double(), ["affine"], beta, colors=1).float()
            shown = model.transform(k[None], {"affine": assignment.parameters["affine"][b : b + 1]})
            torch.testing.assert_close(shown[0], moved, atol=1e-4, rtol=0)
    assert losses == sorted(losses, reverse=True)
    if method == "ti-kmeans":
        model.activate(0)
        assert losses[-1] < 0.2 * float(model.assign(images[2:]).loss_B.mean())


def test_prototypes_learn_under_direct_alignment() -> None:
    config = ClusteringConfig(method="ti-kmeans", transforms=["affine"], k=[1], alignment_steps=5)
    model = build_method(config, torch.full((1, 1, 16, 16), 0.5), seed=0)
    model.activate(1)
    first = float(fit(model, blobs(20), 1))
    assert float(fit(model, blobs(20), 60)) < 0.3 * first


def fit(model: DTI, images: Tensor, iterations: int) -> Tensor:
    """Full-batch Adam; the last loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(iterations):
        output = model.loss(images)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    return output.objective


def groups() -> Tensor:
    """(90, 1, 4, 4): three noisy pictures."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(3, 1, 4, 4, generator=generator)
    noise = 0.05 * torch.randn(90, 1, 4, 4, generator=generator)
    return (pictures.repeat_interleave(30, dim=0) + noise).clamp(0, 1)


def test_kmeans_finds_what_lloyds_algorithm_finds() -> None:
    images = groups()
    model = build_method(ClusteringConfig(method="kmeans", k=[3]), images[[0, 40, 80]], seed=0)
    fit(model, images, 300)
    reference = KMeans(3, init=images[[0, 40, 80]].flatten(1).numpy(), n_init=1).fit(images.flatten(1).numpy())
    assert float(model.assign(images).loss_B.mean()) == pytest.approx(reference.inertia_ / images.numel(), rel=1e-3)
    centres = torch.from_numpy(reference.cluster_centers_).view(3, 1, 4, 4)
    torch.testing.assert_close(model.prototypes_KCHW(), centres, atol=5e-3, rtol=0)


def test_gmm_finds_what_expectation_maximisation_finds() -> None:
    images = groups()
    config = ClusteringConfig(method="gmm", k=[3], min_std=0.02, initial_std=0.1)
    model = build_method(config, images[[0, 40, 80]], seed=0)
    fit(model, images, 600)
    flat = images.flatten(1).double().numpy()
    reference = GaussianMixture(3, covariance_type="diag", reg_covar=0.02**2, means_init=flat[[0, 40, 80]]).fit(flat)
    # scikit-learn adds the minimal variance to the fitted one; here their sum is fitted, which is no worse.
    difference = float(-model.assign(images).loss_B.mean()) - reference.score(flat)
    assert -0.05 < difference < 0.5
    assert torch.equal(model.assign(images).cluster_B, torch.arange(3).repeat_interleave(30))
