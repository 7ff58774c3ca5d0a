from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.clustering.model import dti
from pipeline.clustering.model.build import build_method
from pipeline.clustering.model.dti import DTI, DTIGaussianMixture
from pipeline.config import ClusteringConfig
from tests.support import dense

SEQUENCES: list[list[str]] = [
    [],
    ["color"],
    ["color", "projective"],
    ["affine", "tps"],
    ["projective", "color"],
    ["affine", "morphological", "tps"],
    ["morphological", "color", "affine"],
    ["color", "morphological"],
]


def build(
    method: str, transforms: list[str], k: int = 4, channels: int = 3, learn_variances: bool = True, **more: Any
) -> DTI:
    """Return a method in float64 with random predictors and all modules on."""
    config = ClusteringConfig(
        method=method, transforms=transforms, k=[k], precision="float32", morphology_kernel=3, **more
    )
    torch.manual_seed(5)
    model = build_method(config, torch.rand(k, channels, 8, 10), seed=1).double()
    for name, parameter in model.heads.named_parameters():
        if name.endswith("2"):
            parameter.data.normal_(0, 0.02)
    if isinstance(model, DTIGaussianMixture):
        model.scales.data.uniform_(0.3, 0.6)
        model.set_shares(torch.rand(k).softmax(0).double())
    model.activate(len(config.predicted), learn_variances)
    return model.eval()


def images(n: int = 5, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, 8, 10, generator=torch.Generator().manual_seed(9)).double()


def dense_loss(model: DTI, batch: Tensor, weight_std: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss with gradients, reported loss, and scores with prior, from the dense reference."""
    names, padding, color = model.sequence.names, model.sequence.padding, model.fits_color
    parameters = model.predict(batch)
    if isinstance(model, DTIGaussianMixture):
        scales = model.scales if model.learns_variances else None
        log_g = dense.log_gaussians(
            batch, model.prototypes, scales, names, parameters, 0.25, padding, weight_std, fit_color=color
        )
        loss, objective, _ = dense.gmm_step(log_g, model.log_prior())
        return loss, objective, (log_g + model.log_prior()).detach()
    errors = dense.squared_errors(batch, model.prototypes, names, parameters, padding, weight_std, fit_color=color)
    loss = errors.min(1).values.mean()
    return loss, loss.detach(), -errors.detach()


@pytest.mark.parametrize("transforms", SEQUENCES)
@pytest.mark.parametrize("method", ["dti-gmm", "dti-kmeans"])
def test_a_step_equals_the_dense_algorithm(method: str, transforms: list[str]) -> None:
    """The two passes give the loss and all gradients of Algorithm 1; gradients of the reference include those by
    which a changed prototype changes its fitted colours."""
    check_step(build(method, transforms), weight_std=None)


@pytest.mark.parametrize("transforms", SEQUENCES)
@pytest.mark.parametrize("weight_std", [None, 3.0])
def test_a_step_with_equal_variances_equals_the_dense_algorithm(
    transforms: list[str], weight_std: float | None
) -> None:
    model = build("dti-gmm", transforms, learn_variances=False, loss_weight_std=weight_std)
    check_step(model, weight_std)
    batch = images()
    assert torch.equal(model.assign(batch).cluster_B, dense_loss(model, batch, weight_std)[2].argmax(1))


@pytest.mark.parametrize("transforms", SEQUENCES)
@pytest.mark.parametrize("method", ["dti-gmm", "dti-kmeans"])
def test_a_step_equals_the_dense_algorithm_with_weighted_pixels_and_padding_by_zeros(
    method: str, transforms: list[str]
) -> None:
    check_step(build(method, transforms, padding="zeros", loss_weight_std=3.0), weight_std=3.0)


@pytest.mark.parametrize("transforms", [["color", "morphological"], ["color", "affine"], ["affine", "color"]])
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("method", ["dti-gmm", "dti-kmeans"])
@pytest.mark.parametrize(("k", "n"), [(4, 5), (1, 5), (4, 1), (1, 1)])
def test_one_pair_at_a_time(
    monkeypatch: pytest.MonkeyPatch, transforms: list[str], padding: str, method: str, k: int, n: int
) -> None:
    """With one pair at a time, scores and losses are the same, and the model is not changed."""
    model, batch = build(method, transforms, k=k, padding=padding), images(n)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected_loss, _, scores = dense_loss(model, batch)
    monkeypatch.setattr(dti, "CHUNK_BYTES", {"cpu": 1, "cuda": 1})
    for _ in range(2):
        assert torch.equal(model.assign(batch).cluster_B, scores.argmax(1))
        torch.testing.assert_close(model.loss(batch).loss, expected_loss, rtol=1e-5, atol=1e-6)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def check_step(model: DTI, weight_std: float | None) -> None:
    batch = images()
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected_loss, expected_objective, _ = dense_loss(model, batch, weight_std)
    expected = torch.autograd.grad(expected_loss, parameters, allow_unused=True)
    output = model.loss(batch)
    actual = torch.autograd.grad(output.loss, parameters, allow_unused=True)
    torch.testing.assert_close(output.objective, expected_objective, rtol=1e-5, atol=1e-6)
    for parameter, one, other in zip(parameters, actual, expected, strict=True):
        zero = torch.zeros_like(parameter)
        scale = float((zero if other is None else other).abs().max()) + 1e-12
        difference = ((zero if one is None else one) - (zero if other is None else other)).abs().max()
        assert float(difference) / scale < 2e-4


@pytest.mark.parametrize("transforms", SEQUENCES)
@pytest.mark.parametrize("method", ["dti-gmm", "dti-kmeans"])
def test_assignment_equals_the_dense_scores(method: str, transforms: list[str]) -> None:
    model, batch = build(method, transforms), images()
    _, _, scores = dense_loss(model, batch)
    assignment = model.assign(batch)
    best = scores.topk(2, dim=1)
    assert torch.equal(assignment.cluster_B, best.indices[:, 0])
    assert torch.equal(assignment.runner_up_B, best.indices[:, 1])
    torch.testing.assert_close(assignment.margin_B, best.values[:, 0] - best.values[:, 1], rtol=1e-4, atol=1e-5)
    if method == "dti-gmm":
        torch.testing.assert_close(assignment.posterior_B, scores.softmax(1).amax(1), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(assignment.loss_B, -scores.logsumexp(1), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("method", ["dti-gmm", "dti-kmeans"])
def test_transformations_start_as_the_identity(method: str) -> None:
    config = ClusteringConfig(method=method, transforms=["color", "affine", "tps"], k=[3], precision="float32")
    initial = torch.rand(3, 3, 12, 12)
    model = build_method(config, initial, seed=0)
    untransformed = model.assign(images(4).float().repeat(1, 1, 1, 2)[..., :12].repeat(1, 1, 2, 1)[..., :12, :])
    model.activate(2)
    transformed = model.assign(images(4).float().repeat(1, 1, 1, 2)[..., :12].repeat(1, 1, 2, 1)[..., :12, :])
    torch.testing.assert_close(transformed.loss_B, untransformed.loss_B, rtol=1e-4, atol=1e-4)
    picture = model.transform(
        torch.tensor([1]), {name: beta[:1] for name, beta in transformed.parameters.items() if name != "color"}
    )
    torch.testing.assert_close(picture, initial[1:2], atol=1e-5, rtol=0)


def test_a_single_prototype_is_its_own_runner_up() -> None:
    assignment = build("dti-gmm", ["color"], k=1).assign(images())
    assert assignment.runner_up_B.tolist() == [0] * 5
    assert assignment.margin_B.tolist() == [0.0] * 5
    assert assignment.posterior_B.tolist() == [1.0] * 5


def test_one_channel_works_with_colour() -> None:
    model = build("dti-gmm", ["color", "affine"], channels=1)
    assert model.assign(images(channels=1)).parameters["color"].shape == (5, 2)


def test_assignment_includes_the_mixing_proportions() -> None:
    """Of two equal prototypes, images are assigned to the one with the larger mixing proportion."""
    model = build("dti-gmm", [], k=2)
    assert isinstance(model, DTIGaussianMixture)
    for parameter in (model.prototypes, model.scales):
        parameter.data[1] = parameter.data[0]
    model.set_shares(torch.tensor([0.0, 1.0]).double().softmax(0))
    assignment = model.assign(images())
    assert assignment.cluster_B.tolist() == [1] * 5
    torch.testing.assert_close(assignment.posterior_B, torch.tensor(1.0).double().sigmoid().expand(5))


@pytest.mark.parametrize("method", ["dti-gmm", "dti-kmeans"])
def test_screening_keeps_the_prototypes_that_matter(method: str) -> None:
    """For images made from the prototypes, screening on a 16th of the pixels changes no gradient."""
    config = ClusteringConfig(method=method, transforms=["color", "affine"], k=[12], precision="float32")
    pictures = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    prototypes = torch.nn.functional.interpolate(pictures, size=(64, 64), mode="bicubic")
    model = build_method(config, prototypes, seed=1)
    model.activate(1, learn_variances=True)
    model.eval()
    batch = (prototypes[torch.arange(24) % 12] + 0.1 * torch.randn(24, 3, 64, 64)).clamp(0, 1)
    parameters = [p for p in model.parameters() if p.requires_grad]

    model.screen_stride = 1
    full = model.loss(batch)
    expected = torch.autograd.grad(full.loss, parameters)
    model.screen_stride = 4
    screened = model.loss(batch)
    actual = torch.autograd.grad(screened.loss, parameters)
    assert torch.equal(screened.assigned.cluster_B, full.assigned.cluster_B)
    torch.testing.assert_close(screened.objective, full.objective)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()) + 1e-12)


def test_screening_rules_out_all_but_the_survivors() -> None:
    config = ClusteringConfig(transforms=["affine"], k=[9], precision="float32")
    model = build_method(config, torch.rand(9, 3, 64, 64), seed=1)
    model.activate(1)
    batch = torch.rand(5, 3, 64, 64)
    with torch.no_grad():
        scores = model._training_scores(model.canvas(), batch, model.predict(batch), model.log_prior())
    assert (scores == -torch.inf).sum(1).tolist() == [6] * 5


def test_the_part_with_a_number_that_is_not_finite_is_named() -> None:
    model = build("dti-gmm", ["color", "affine"])
    assert model.broken_part() is None
    model.heads["affine"].get_parameter("weights.1").data[0, 0, 0] = float("inf")
    assert model.broken_part() == "the predictors of module affine"
    model.prototypes.data[0] = float("nan")
    assert model.broken_part() == "prototypes"


@pytest.mark.parametrize("transforms", [["color", "projective"], ["affine", "morphological", "tps"]])
@pytest.mark.parametrize("shape", [(3, 65, 97), (1, 33, 20)])
def test_odd_sizes(transforms: list[str], shape: tuple[int, int, int]) -> None:
    config = ClusteringConfig(transforms=transforms, k=[5])
    pictures = torch.rand(6, *shape)
    model = build_method(config, pictures[:5], seed=0)
    model.activate(len(config.predicted), learn_variances=True)
    output = model.loss(pictures)
    output.loss.backward()
    assert output.loss.isfinite()
    model.eval()
    assignment = model.assign(pictures)
    assert model.transform(assignment.cluster_B, assignment.parameters).shape == pictures.shape
    assert model.align_back(pictures, assignment.parameters).shape == pictures.shape


def test_colours_of_nearly_flat_prototypes_are_exact() -> None:
    """In float32, the scores of a large picture with little contrast agree with those in float64."""
    generator = torch.Generator().manual_seed(3)
    pictures = 0.6 + 0.002 * torch.rand(2, 3, 128, 128, generator=generator)
    batch = (0.7 + 0.02 * torch.randn(4, 3, 128, 128, generator=generator)).clamp(0, 1)
    model = build_method(ClusteringConfig(k=[2], transforms=["color"], precision="float32"), pictures, seed=0)
    single = model.assign(batch).loss_B
    torch.testing.assert_close(single.double(), model.double().assign(batch.double()).loss_B, atol=0.05, rtol=0)
