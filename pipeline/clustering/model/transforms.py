"""The parametric transformations that align a prototype to an image (DTI paper, section 4.1).

Every transformation is the identity where its parameters are zero, so networks that start at zero start there.

Shapes: `...` any leading dimensions (one parameter vector each), C channels, H x W pixels. Points are normalised
(x, y) positions in the picture's area: (-1, -1) is the outer corner of the top left pixel, (1, 1) that of the bottom
right one, whatever the resolution. A spatial transformation takes output positions to positions in the prototype;
several of them compose into one set of points, so that a prototype is interpolated once and not blurred repeatedly.
Colour is affine in the pixel value and bilinear weights sum to one, so colour and space commute, as long as the border
continues. Morphology commutes with neither: it ends a run of modules that are applied at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, grid_sample, pad

from pipeline.config import Padding

SMALLEST_DIVISOR = 0.1
"""Lower bound of the homogeneous divisor of a projective transformation; beyond it lies the horizon."""
SMALLEST_GAIN = 0.05
"""Lower bound of the magnitude of a colour gain when it is inverted."""
NEWTON_STEPS = 12
WINDOW_LOGIT = 5.0
"""Logit of a morphological window's centre; that of all other positions is its negative."""
LARGEST_SOFTNESS = 30.0
"""Bound on alpha, either way: there a soft maximum is one, and its exponentials are still far from overflow."""


class SpatialTransform(Protocol):
    """Moves points."""

    n_parameters: int

    def warp(self, beta: Tensor, points: Tensor) -> Tensor:
        """Positions in the prototype of the output positions `points` (..., N, 2), for parameters `beta` (..., p)."""

    def unwarp(self, beta: Tensor, points: Tensor) -> Tensor:
        """Output positions whose `warp` is `points`."""


class LinearTransform(nn.Module):
    """A spatial transformation that moves points by amounts linear in its parameters.

    Args:
        moves_pN2: how far each of the output positions that are warped most often moves, per unit of each parameter.
    """

    moves_pN2: Tensor

    def __init__(self, moves_pN2: Tensor) -> None:
        super().__init__()
        self.n_parameters = len(moves_pN2)
        self.register_buffer("moves_pN2", moves_pN2, persistent=False)

    def warp_base(self, beta: Tensor, base_N2: Tensor, kept: slice | Tensor) -> Tensor:
        """`warp` of `base_N2`, which are those of the constructor at the indices `kept`: one matrix product."""
        moves = self.moves_pN2[:, kept].flatten(1).to(beta.dtype)
        warped = torch.addmm(base_N2.to(beta.dtype).flatten(), beta.flatten(0, -2), moves)
        return warped.view(*beta.shape[:-1], *base_N2.shape)


class Affine(LinearTransform):
    """x -> (I + A) x + t with beta = [A | t], row by row.

    Args:
        base_N2: output positions that are warped most often.
    """

    def __init__(self, base_N2: Tensor) -> None:
        super().__init__(_moves_along_axes(torch.cat([base_N2, torch.ones_like(base_N2[:, :1])], dim=1), by_axis=True))

    def warp(self, beta: Tensor, points: Tensor) -> Tensor:
        return _linear(self._matrix(beta), points).mT

    def unwarp(self, beta: Tensor, points: Tensor) -> Tensor:
        last = torch.tensor([0.0, 0.0, 1.0], dtype=beta.dtype, device=beta.device).expand(*beta.shape[:-1], 1, 3)
        return _divided(_adjugate(torch.cat([self._matrix(beta), last], dim=-2)), points)

    @staticmethod
    def _matrix(beta: Tensor) -> Tensor:
        return torch.eye(2, 3, dtype=beta.dtype, device=beta.device) + beta.unflatten(-1, (2, 3))


class Projective:
    """Homography I + B whose last entry is fixed at one: 8 parameters, row by row.

    The homogeneous divisor is kept at `SMALLEST_DIVISOR` or above, so points stay finite.
    """

    n_parameters = 8

    def warp(self, beta: Tensor, points: Tensor) -> Tensor:
        return _divided(self._matrix(beta), points)

    def unwarp(self, beta: Tensor, points: Tensor) -> Tensor:
        return _divided(_adjugate(self._matrix(beta)), points)

    @staticmethod
    def _matrix(beta: Tensor) -> Tensor:
        full = torch.cat([beta, torch.zeros_like(beta[..., :1])], dim=-1).unflatten(-1, (3, 3))
        return torch.eye(3, dtype=beta.dtype, device=beta.device) + full


class ThinPlateSpline(LinearTransform):
    """Smoothest displacement that moves the control points of a regular grid by beta (grid x grid x 2, x fastest).

    The interpolation system with kernel r^2 log r is solved once, in float64: the displacement of a point is linear
    in beta. The corner control points lie at (-1, -1) and (1, 1).

    Args:
        grid: control points along each side.
        base_N2: output positions that are warped most often.
    """

    solution: Tensor
    control_G2: Tensor

    def __init__(self, grid: int, base_N2: Tensor) -> None:
        axis = torch.linspace(-1, 1, grid, dtype=torch.float64)
        control = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).reshape(-1, 2)
        n = len(control)
        system = torch.zeros(n + 3, n + 3, dtype=torch.float64)
        rows = self._basis(control, control)
        system[:n] = rows
        system[n:, :n] = rows[:, n:].T
        solution = torch.linalg.inv(system)[:, :n]
        moves = _moves_along_axes(self._basis(base_N2.double(), control) @ solution, by_axis=False)
        super().__init__(moves.to(base_N2))
        self.register_buffer("solution", solution.to(base_N2), persistent=False)
        self.register_buffer("control_G2", control.to(base_N2), persistent=False)

    def warp(self, beta: Tensor, points: Tensor) -> Tensor:
        moves = self.solution.to(beta.dtype) @ beta.unflatten(-1, (-1, 2))
        return points + self._basis(points, self.control_G2.to(beta.dtype)) @ moves

    def unwarp(self, beta: Tensor, points: Tensor) -> Tensor:
        """Newton's method on warp(x) = points; where the spline folds, the nearest solution found."""
        control = self.control_G2.to(beta.dtype)
        coefficients = self.solution.to(beta.dtype) @ beta.unflatten(-1, (-1, 2))
        x = points.expand(*beta.shape[:-1], *points.shape[-2:]).clone()
        identity = torch.eye(2, dtype=beta.dtype, device=beta.device)
        for _ in range(NEWTON_STEPS):
            residual = x + self._basis(x, control) @ coefficients - points
            offset = x[..., None, :] - control
            slope = offset * (2 * self._log_radius(offset) + 1)
            n = len(control)
            jacobian = torch.einsum("...ngi,...gj->...nji", slope, coefficients[..., :n, :])
            jacobian = jacobian + identity + coefficients[..., None, n + 1 :, :].mT
            step = torch.linalg.lstsq(jacobian.nan_to_num(), residual.nan_to_num()[..., None]).solution[..., 0]
            x = x - step.nan_to_num().clamp(-0.5, 0.5)
        return x

    @classmethod
    def _basis(cls, points: Tensor, control: Tensor) -> Tensor:
        offset = points[..., None, :] - control
        kernel = offset.square().sum(-1) * cls._log_radius(offset)[..., 0]
        return torch.cat([kernel, torch.ones_like(points[..., :1]), points], dim=-1)

    @staticmethod
    def _log_radius(offset: Tensor) -> Tensor:
        squared = offset.square().sum(-1, keepdim=True)
        return 0.5 * squared.clamp_min(torch.finfo(offset.dtype).tiny).log()


class Morphology:
    """Soft dilation (alpha > 0) or erosion (alpha < 0) over a learned window (equation 6), each channel alike.

    beta = [alpha, window row by row]. The paper's window weights lie in [0, 1]; here the centre weighs
    sigmoid(beta + 5), and every other position what sigmoid(beta - 5) exceeds its value at beta = 0 by, or nothing:
    the plain sigmoid would begin as a blur, in which a picture keeps three quarters of its centre pixel. The price: a
    position is closed, and has no gradient, for an image whose parameter is below 0; it opens again through other
    images, since a network predicts it for all. Beyond the border a picture is 0.

    Args:
        kernel: side of the window in px, odd.
    """

    def __init__(self, kernel: int) -> None:
        self.kernel = kernel
        self.n_parameters = 1 + kernel * kernel

    def apply(self, beta: Tensor, pictures: Tensor) -> Tensor:
        """`pictures` (P, C, H, W), each under its own parameters `beta` (P, p)."""
        alpha = beta[:, 0].clamp(-LARGEST_SOFTNESS, LARGEST_SOFTNESS)
        return morphology(pictures, alpha, self.window(beta[:, 1:]).unflatten(1, (self.kernel, self.kernel)))

    def window(self, beta: Tensor) -> Tensor:
        """(P, kernel^2) weights in [0, 1] for as many parameters; at zero, one position weighs anything."""
        centre = self.kernel * self.kernel // 2
        closed = torch.sigmoid(beta.new_tensor(-WINDOW_LOGIT))
        weights = (torch.sigmoid(beta - WINDOW_LOGIT) - closed).clamp_min(0)
        middle = torch.sigmoid(beta[:, centre : centre + 1].clamp_min(-2 * WINDOW_LOGIT) + WINDOW_LOGIT)  # never all 0
        return torch.cat([weights[:, :centre], middle, weights[:, centre + 1 :]], dim=1)


def morphology(pictures_PCHW: Tensor, alpha_P: Tensor, window_Phw: Tensor) -> Tensor:
    """Equation 6: at each pixel, the mean over the window weighted by `window` * exp(alpha * pixel).

    With e = exp(alpha x) it is conv(x e, window) / conv(e, window): two depth-wise convolutions, where a sum over the
    window would hold each of its positions for every pixel.

    Args:
        pictures_PCHW: continued by 0 beyond their border.
        alpha_P: softness; its exponentials are taken around middle grey, which cancels and keeps them small.
        window_Phw: weights >= 0, not all 0, of an odd number of rows and columns.
    """
    channels = pictures_PCHW.shape[1]
    rows, columns = window_Phw.shape[1:]
    x = pad(pictures_PCHW, (columns // 2, columns // 2, rows // 2, rows // 2)).flatten(0, 1)
    # Prototypes may leave [0, 1]; how far beyond makes no difference to what is lightest or darkest there.
    e = (x.clamp(-1, 2).sub_(0.5) * alpha_P.repeat_interleave(channels)[:, None, None]).exp_()
    kernels = window_Phw.repeat_interleave(channels, dim=0)
    correlate: Callable[[Tensor, Tensor], Tensor] = _CPUCorrelation.apply if x.is_cpu else _correlated
    return (correlate(x * e, kernels) / correlate(e, kernels)).view_as(pictures_PCHW)


def _correlated(planes_NHW: Tensor, kernels_Nhw: Tensor) -> Tensor:
    """Each plane under its own kernel, where all of it overlaps the plane."""
    return conv2d(planes_NHW[None], kernels_Nhw[:, None], groups=len(planes_NHW))[0]


class _CPUCorrelation(torch.autograd.Function):
    """`_correlated`, whose gradients are such correlations again.

    torch's own gradient of a depth-wise kernel takes fifteen times as long on a CPU. On a GPU it does not.
    """

    @staticmethod
    def forward(ctx: Any, planes: Tensor, kernels: Tensor) -> Tensor:
        ctx.save_for_backward(planes, kernels)
        return _correlated(planes, kernels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        planes, kernels = ctx.saved_tensors
        rows, columns = kernels.shape[1:]
        around = pad(gradient, (columns - 1, columns - 1, rows - 1, rows - 1))
        return _correlated(around, kernels.flip(-1, -2)), _correlated(planes, gradient)


class TransformSequence(nn.Module):
    """The modules of a method in the order in which they are applied, for pictures of one size.

    A canvas is what moves together: the first channels are a picture, whose colours and shapes change; further ones
    (the Gaussian mixture's scales) only follow the spatial modules.

    Args:
        names: transformation names, such as ["color", "projective"].
        channels, height, width: of the pictures.
        tps_grid: control points along each side of a thin plate spline.
        morphology_kernel: side of the morphological window in px.
        padding: what lies beyond a picture: its border, continued, or zeros.
    """

    base_N2: Tensor

    def __init__(
        self,
        names: Sequence[str],
        channels: int,
        height: int,
        width: int,
        tps_grid: int = 4,
        morphology_kernel: int = 7,
        padding: Padding = "border",
    ) -> None:
        super().__init__()
        self.names = list(names)
        self.channels, self.height, self.width = channels, height, width
        self.padding: Padding = padding
        ys = (torch.arange(height) * 2 + 1) / height - 1
        xs = (torch.arange(width) * 2 + 1) / width - 1
        base = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).reshape(-1, 2)
        self.register_buffer("base_N2", base, persistent=False)
        self._morphology = Morphology(morphology_kernel)
        self._spatial: dict[str, SpatialTransform] = {}
        for name in names:
            if name == "affine":
                self._spatial[name] = Affine(base)
            elif name == "projective":
                self._spatial[name] = Projective()
            elif name == "tps":
                self._tps = ThinPlateSpline(tps_grid, base)
                self._spatial[name] = self._tps
        sizes = {"color": 2 * channels, "morphological": self._morphology.n_parameters}
        self.sizes = {
            name: self._spatial[name].n_parameters if name in self._spatial else sizes[name] for name in names
        }
        """Number of parameters of each module."""

    def moves(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether any module in `parameters` is spatial."""
        return any(name in self._spatial for name in parameters)

    def only_color(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether the modules in `parameters` leave shapes alone: a pixel's value depends on that pixel alone."""
        return set(parameters) <= {"color"}

    def screens(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether `transform_each` can look at some output pixels only, and saves time by it."""
        return self.moves(parameters) and len(self._runs(parameters)) == 1 and not self.convolves(parameters)

    def convolves(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether any module in `parameters` is a convolution of pictures."""
        return "morphological" in parameters

    def transform(self, canvas: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """(P, C', H, W): each canvas of (P, C', H, W) transformed by its own parameters (P, p)."""
        for run in self._runs(parameters):
            canvas = self._apply_run(canvas, run)
        return canvas

    def transform_each(self, canvas: Tensor, parameters: Mapping[str, Tensor], stride: int = 1) -> Tensor:
        """(K, B, C', H', W'): every canvas of (K, C', H, W) under each of its B parameter vectors (K, B, p).

        Args:
            stride: of the output pixels that are computed, see `every`; 1 unless `screens`.
        """
        first, *later = self._runs(parameters)
        if self.moves(first) and "morphological" not in first:
            # All warps of one canvas stand below each other in one tall picture, so that it is read in place.
            points = self.points(first, stride)
            tall = sample(canvas, points.flatten(1, 2), self.padding)
            canvas = self._colored(tall.unflatten(2, (points.shape[1], -1)).transpose(1, 2), first, made_here=True)
        else:
            later = [first, *later]
            canvas = canvas[:, None].expand(-1, next(iter(first.values())).shape[1], -1, -1, -1)
        if later:
            shape = canvas.shape
            canvas = canvas.flatten(0, 1)
            for run in later:
                canvas = self._apply_run(canvas, {name: beta.flatten(0, 1) for name, beta in run.items()})
            canvas = canvas.view(shape)
        return canvas

    def _runs(self, parameters: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The modules in `parameters`, cut where one must be done before the next begins.

        Within a run morphology comes first, then one sampling for all spatial modules, then colour. Zeros beyond the
        border would take the colour of what they stand beside, so with them colour ends its run.
        """
        runs: list[dict[str, Tensor]] = []
        for name in self.names:
            if name not in parameters:
                continue
            after_color = self.padding == "zeros" and bool(runs) and "color" in runs[-1] and name in self._spatial
            if not runs or name == "morphological" or after_color:
                runs.append({})
            runs[-1][name] = parameters[name]
        return runs

    def _apply_run(self, canvas: Tensor, run: Mapping[str, Tensor]) -> Tensor:
        if "morphological" in run:
            picture = self._morphology.apply(run["morphological"], canvas[:, : self.channels])
            canvas = torch.cat([picture, canvas[:, self.channels :]], dim=1)
        if self.moves(run):
            canvas = sample(canvas, self.points(run), self.padding)
        return self._colored(canvas, run, made_here="morphological" in run or self.moves(run))

    def _colored(self, canvas: Tensor, run: Mapping[str, Tensor], made_here: bool) -> Tensor:
        color = self.color(run)
        if color is None:
            return canvas
        gain, bias = (part[..., None, None] for part in color)
        picture = canvas[..., : self.channels, :, :]
        if made_here and not torch.is_grad_enabled():
            # Nobody else holds the canvas, and copying it takes as long as sampling it.
            picture.mul_(gain).add_(bias)
            return canvas
        return torch.cat([picture * gain + bias, canvas[..., self.channels :, :, :]], dim=-3)

    def points(self, parameters: Mapping[str, Tensor], stride: int = 1) -> Tensor:
        """(..., H', W', 2): where in the prototype each output pixel comes from.

        Args:
            parameters: (..., p) of each active module.
            stride: of the output pixels that are looked at, in both directions; see `every`.
        """
        kept: slice | Tensor = slice(None)
        shape = (self.height, self.width)
        if stride > 1:
            grid = every(torch.arange(len(self.base_N2), device=self.base_N2.device).view(shape), stride)
            shape, kept = (grid.shape[0], grid.shape[1]), grid.reshape(-1)
        base = points = self.base_N2[kept]
        # T_M(... T_1(c)): the last module is the first to see an output position.
        for name in reversed([name for name in self.names if name in parameters and name in self._spatial]):
            transform = self._spatial[name]
            if isinstance(transform, LinearTransform) and points is base:
                points = transform.warp_base(parameters[name], base, kept)
            else:
                points = transform.warp(parameters[name], points)
        return points.unflatten(-2, shape)

    def color(self, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Gain and bias, each (..., C); None where no colour module is among `parameters`."""
        if "color" not in parameters:
            return None
        change, bias = parameters["color"].chunk(2, dim=-1)
        return 1 + change, bias

    def invert(self, images_BCHW: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """(B, C, H, W): what `images_BCHW` look like in their prototype's frame and colours.

        Morphology has no inverse: strokes keep the image's thickness.
        """
        points = self.base_N2
        moved = False
        for name in self.names:
            if name in parameters and name in self._spatial:
                points, moved = self._spatial[name].unwarp(parameters[name], points), True
        if color := self.color(parameters):
            gain, bias = color
            safe = torch.where(gain < 0, -1.0, 1.0) * gain.abs().clamp_min(SMALLEST_GAIN)
            images_BCHW = (images_BCHW - bias[..., None, None]) / safe[..., None, None]
        if not moved:
            return images_BCHW
        return sample(images_BCHW, points.unflatten(-2, (self.height, self.width)), self.padding)


def every(pixels: Tensor, stride: int) -> Tensor:
    """Every `stride`-th pixel of (..., H, W) in both directions, from the middle of the first block."""
    return pixels[..., stride // 2 :: stride, stride // 2 :: stride]


def _moves_along_axes(moves_NG: Tensor, by_axis: bool) -> Tensor:
    """(2 G, N, 2): the same moves along x, for one half of the parameters, and along y, for the other.

    Args:
        moves_NG: how far each of N points moves per unit of each of G parameters.
        by_axis: whether all parameters of x come first, then those of y; otherwise they alternate.
    """
    moves_GcNc = torch.einsum("ng,ij->ginj", moves_NG, torch.eye(2, dtype=moves_NG.dtype, device=moves_NG.device))
    return (moves_GcNc.transpose(0, 1) if by_axis else moves_GcNc).flatten(0, 1)


def _linear(matrix: Tensor, points: Tensor) -> Tensor:
    """(..., R, N): the rows of `matrix` (..., R, 3) applied to (x, y, 1) of `points` (N, 2) or (..., N, 2)."""
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1).mT
    if homogeneous.dim() > 2:
        return matrix @ homogeneous
    # One large product instead of a batch of tiny ones.
    return (matrix.flatten(0, -2) @ homogeneous).unflatten(0, matrix.shape[:-1])


def _divided(matrix: Tensor, points: Tensor) -> Tensor:
    """`points` under the homographies `matrix` (..., 3, 3)."""
    homogeneous = _linear(matrix, points)
    return (homogeneous[..., :2, :] / homogeneous[..., 2:, :].clamp_min(SMALLEST_DIVISOR)).mT


def _adjugate(matrix: Tensor) -> Tensor:
    """(..., 3, 3): the inverse homographies, last entry one; without meaning, but no error, where there is none."""
    a, b, c = matrix.unbind(-2)
    adjugate = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=-1)
    return (adjugate / adjugate[..., 2:, 2:]).nan_to_num(0.0, 0.0, 0.0)


def sample(images_PCHW: Tensor, points_PHW2: Tensor, padding: Padding = "border") -> Tensor:
    """Bilinear values of `images_PCHW` at `points_PHW2`; beyond the border its values continue, or zeros follow."""
    return grid_sample(images_PCHW, points_PHW2, mode="bilinear", padding_mode=padding, align_corners=False)
