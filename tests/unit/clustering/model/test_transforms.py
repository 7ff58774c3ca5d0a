from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.clustering.model.morphology import Morphology, morphology
from pipeline.clustering.model.transforms import TransformSequence, sample
from tests.support import dense

SPATIAL = ["affine", "projective", "tps"]


def sequence(names: list[str], channels: int = 3, height: int = 9, width: int = 11) -> TransformSequence:
    return TransformSequence(names, channels, height, width).double()


def random_parameters(names: list[str], n: int, scale: float, channels: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = TransformSequence(names, channels, 8, 8).sizes
    return {
        name: scale * torch.randn(n, size, generator=generator, dtype=torch.float64) for name, size in sizes.items()
    }


@pytest.mark.parametrize("name", SPATIAL)
def test_points_follow_the_formula(name: str) -> None:
    parameters = random_parameters([name], 3, 0.1)
    points = sequence([name]).points(parameters)
    centres = dense.pixel_centres(9, 11)
    for i in range(3):
        expected = dense.POINTS[name](parameters[name][i], centres)
        torch.testing.assert_close(points[i], expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", SPATIAL)
@pytest.mark.parametrize("shape", [(28, 28), (65, 97)])
def test_zero_parameters_are_the_identity(name: str, shape: tuple[int, int]) -> None:
    modules = TransformSequence([name], 1, *shape)
    picture = torch.rand(2, 1, *shape)
    points = modules.points({name: torch.zeros(2, modules.sizes[name])})
    torch.testing.assert_close(sample(picture, points), picture, atol=2e-5, rtol=0)


@pytest.mark.parametrize("names", [["affine", "tps"], ["tps", "projective"], ["projective", "affine", "tps"]])
def test_modules_compose_in_their_order(names: list[str]) -> None:
    """The composed points are T_1's points at T_2's points at …, since the sequence applies its first module first."""
    parameters = random_parameters(names, 1, 0.05)
    points = sequence(names).points(parameters)[0]
    expected = dense.pixel_centres(9, 11)
    for name in reversed(names):
        moved = dense.POINTS[name](parameters[name][0], expected)
        expected = torch.cat([moved, torch.ones_like(moved[..., :1])], dim=-1)
    torch.testing.assert_close(points, expected[..., :2], atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", SPATIAL)
def test_gradients(name: str) -> None:
    modules = sequence([name], channels=1, height=4, width=5)
    beta = random_parameters([name], 2, 0.05)[name].requires_grad_()
    assert torch.autograd.gradcheck(lambda b: modules.points({name: b}), (beta,))


def test_a_projective_horizon_stays_finite() -> None:
    modules = sequence(["projective"])
    beta = torch.zeros(1, 8, dtype=torch.float64)
    beta[0, 6] = -3.0  # the divisor changes sign within the picture
    assert modules.points({"projective": beta}).isfinite().all()


@pytest.mark.parametrize("names", [["affine"], ["projective"], ["tps"], ["affine", "tps"], ["projective", "tps"]])
def test_inverse_points_undo_the_warp(names: list[str]) -> None:
    modules = sequence(names)
    parameters = random_parameters(names, 4, 0.03)
    points = modules.base_N2.double()
    for name in names:
        points = modules._spatial[name].unwarp(parameters[name], points)
    for name in reversed(names):
        points = modules._spatial[name].warp(parameters[name], points)
    torch.testing.assert_close(points, modules.base_N2.double().expand_as(points), atol=1e-6, rtol=0)


def test_invert_aligns_a_photo_back() -> None:
    """Transforming a smooth picture and inverting the result restores the picture, except near the border."""
    names = ["projective"]
    modules = TransformSequence(names, 3, 64, 64)
    y, x = torch.meshgrid(torch.linspace(0, 3, 64), torch.linspace(0, 3, 64), indexing="ij")
    picture = torch.stack([x.sin(), y.cos(), (x * y).sin()])[None] * 0.4 + 0.5
    parameters = {name: value.float() for name, value in random_parameters(names, 1, 0.03).items()}
    photo = sample(picture, modules.points(parameters))
    back = modules.invert(photo, parameters)
    torch.testing.assert_close(back[..., 8:-8, 8:-8], picture[..., 8:-8, 8:-8], atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", ["affine", "projective"])
def test_a_transformation_without_inverse_raises_nothing(name: str) -> None:
    modules = sequence([name])
    beta = torch.zeros(1, modules.sizes[name], dtype=torch.float64)
    beta[0, 0] = beta[0, 4] = -1
    photo = torch.rand(1, 3, 9, 11, dtype=torch.float64)
    assert modules.invert(photo, {name: beta}).isfinite().all()


def picture(channels: int = 2, height: int = 9, width: int = 11) -> Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("alpha", [-8.0, 0.0, 2.0])
def test_morphology_is_the_sum_over_its_window(kernel: int, alpha: float) -> None:
    beta = 3 * torch.randn(1, 1 + kernel**2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    beta[0, 0] = alpha
    expected = dense.morphology_sum(picture()[0], beta[0])
    torch.testing.assert_close(Morphology(kernel).apply(beta, picture())[0], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_morphology_starts_as_the_identity(channels: int) -> None:
    module = Morphology(7)
    unchanged = module.apply(torch.zeros(1, 50, dtype=torch.float64), picture(channels))
    torch.testing.assert_close(unchanged, picture(channels), atol=1e-12, rtol=0)


def test_morphology_learns_from_the_identity() -> None:
    """The window's gradient is not zero at the identity, and it points towards thicker strokes."""
    thin = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    thin[..., 4] = 1
    thick = thin.clone()
    thick[..., 3:6] = 1
    beta = torch.zeros(1, 50, dtype=torch.float64, requires_grad=True)
    (Morphology(7).apply(beta, thin) - thick).square().sum().backward()
    assert beta.grad is not None
    right_of_centre = 1 + 24 + 1
    assert float(beta.grad[0, right_of_centre]) < 0


def test_gradients_of_morphology() -> None:
    beta = torch.rand(2, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    x = torch.rand(2, 2, 4, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(Morphology(3).apply, (beta, x))


@pytest.mark.parametrize(("alpha", "extreme"), [(1e4, torch.amax), (-1e4, torch.amin)])
def test_strong_morphology_is_dilation_or_erosion(alpha: float, extreme: object) -> None:
    """An open window with a large |alpha| yields the largest or smallest pixel, without overflow in float32."""
    binary = (picture().float() > 0.6).float()
    out = morphology(binary, torch.tensor([alpha]).clamp(-30, 30), torch.ones(1, 3, 3))
    inner = binary.unfold(2, 3, 1).unfold(3, 3, 1)
    expected = extreme(inner, (-2, -1))  # type: ignore[operator]
    torch.testing.assert_close(out[..., 1:-1, 1:-1], expected, atol=1e-5, rtol=0)


def test_huge_parameters_of_morphology_stay_finite() -> None:
    beta = torch.full((2, 50), 1e6)
    beta[1] = -1e6
    assert Morphology(7).apply(beta, 10 * picture().float().expand(2, -1, -1, -1) - 5).isfinite().all()


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize(
    "names",
    [["affine", "tps"], ["affine", "morphological", "tps", "projective"], ["morphological"]],
)
def test_every_canvas_under_every_parameter(padding: str, names: list[str]) -> None:
    """`transform_each` and `transform` agree with the reference modules, applied one after the other."""
    modules = TransformSequence(names, 2, 9, 11, morphology_kernel=3, padding=padding).double()  # type: ignore[arg-type]
    canvas = torch.rand(3, 4, 9, 11, dtype=torch.float64)
    beta = {name: 0.1 * torch.randn(3, 5, size, dtype=torch.float64) for name, size in modules.sizes.items()}
    with torch.no_grad():
        each = modules.transform_each(canvas, beta)
    for k in range(3):
        for b in range(5):
            of_pair = {name: value[k, b] for name, value in beta.items()}
            expected = dense.transform(canvas[k], names, of_pair, colors=2, padding=padding)
            torch.testing.assert_close(each[k, b], expected, atol=2e-6, rtol=0)
            single = modules.transform(canvas[k : k + 1], {name: value[None] for name, value in of_pair.items()})
            torch.testing.assert_close(single[0], expected, atol=2e-6, rtol=0)
