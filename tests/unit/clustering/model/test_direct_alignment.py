"""The baselines: directly optimised transformations, and no transformations."""

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
    """Return images (n, 1, 16, 16) of a soft square each, up to 2 px from the middle in either direction."""
    generator = torch.Generator().manual_seed(0)
    centre = 7.5 + 4 * (torch.rand(n, 2, generator=generator) - 0.5)
    axis = torch.arange(16)
    distance = (axis - centre[:, :, None]).abs()
    y, x = (3 - distance).clamp(0, 1).unbind(1)
    return (y[:, :, None] * x[:, None, :])[:, None]


@pytest.mark.parametrize("method", ["ti-gmm", "ti-kmeans"])
def test_direct_alignment_converges_to_the_image(method: str) -> None:
    """With more steps the loss decreases, and `transform` follows the dense formula for the returned parameters."""
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
            transformed = model.transform(k[None], {"affine": assignment.parameters["affine"][b : b + 1]})
            torch.testing.assert_close(transformed[0], moved, atol=1e-4, rtol=0)
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
    """Train with full-batch Adam; return the last loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(iterations):
        output = model.loss(images)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    return output.objective


def groups() -> Tensor:
    """Return 90 images (90, 1, 4, 4): thirty noisy copies of each of three pictures."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(3, 1, 4, 4, generator=generator)
    noise = 0.05 * torch.randn(90, 1, 4, 4, generator=generator)
    return (pictures.repeat_interleave(30, dim=0) + noise).clamp(0, 1)


def test_kmeans_agrees_with_lloyds_algorithm() -> None:
    images = groups()
    model = build_method(ClusteringConfig(method="kmeans", k=[3]), images[[0, 40, 80]], seed=0)
    fit(model, images, 300)
    reference = KMeans(3, init=images[[0, 40, 80]].flatten(1).numpy(), n_init=1).fit(images.flatten(1).numpy())
    assert float(model.assign(images).loss_B.mean()) == pytest.approx(reference.inertia_ / images.numel(), rel=1e-3)
    centres = torch.from_numpy(reference.cluster_centers_).view(3, 1, 4, 4)
    torch.testing.assert_close(model.prototypes_KCHW(), centres, atol=5e-3, rtol=0)


def test_gmm_agrees_with_expectation_maximisation() -> None:
    images = groups()
    config = ClusteringConfig(method="gmm", k=[3], min_std=0.02, initial_std=0.1)
    model = build_method(config, images[[0, 40, 80]], seed=0)
    model.activate(0, learn_variances=True)
    fit(model, images, 600)
    flat = images.flatten(1).double().numpy()
    reference = GaussianMixture(3, covariance_type="diag", reg_covar=0.02**2, means_init=flat[[0, 40, 80]]).fit(flat)
    # scikit-learn adds the minimum variance to the fitted variance; here the sum is fitted, which is not worse.
    difference = float(-model.assign(images).loss_B.mean()) - reference.score(flat)
    assert -0.05 < difference < 0.5
    assert torch.equal(model.assign(images).cluster_B, torch.arange(3).repeat_interleave(30))
