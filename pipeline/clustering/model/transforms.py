"""The parametric transformations that align a prototype to an image (DTI paper, section 4.1).

Every transformation is the identity where its parameters are zero, so networks that start at zero predict the identity.

Shapes: `...` any leading dimensions (one parameter vector each), C channels, H x W pixels. Points are normalised
(x, y) positions in the picture's area: (-1, -1) is the outer corner of the top left pixel, (1, 1) that of the bottom
right one, for any resolution. A spatial transformation maps output positions to positions in the prototype;
several of them compose into one set of points, so that a prototype is interpolated once and not blurred repeatedly.
Morphology does not commute with them, so it begins a new run; a run consists of modules that are applied at once. The
colour of the result is fitted in `color.py`, and is not part of the sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from pipeline.clustering.model.morphology import Morphology
from pipeline.config import Padding

SMALLEST_DIVISOR = 0.1
"""Lower bound of the divisor by which a projective transformation divides coordinates; it is 0 on the horizon."""
NEWTON_STEPS = 12
"""Number of steps of Newton's method when a thin plate spline is inverted."""


class SpatialTransform(Protocol):
    """A transformation of positions."""

    n_parameters: int

    def warp(self, beta: Tensor, points: Tensor) -> Tensor:
        """Map output positions `points` (..., N, 2) to positions in the prototype, for parameters `beta` (..., p)."""

    def unwarp(self, beta: Tensor, points: Tensor) -> Tensor:
        """Map positions in the prototype to output positions: the inverse of `warp`."""


class LinearTransform(nn.Module):
    """A spatial transformation that moves points by amounts linear in its parameters.

    Args:
        moves_pN2: displacements of the output positions that are warped most often, per unit of each parameter.
    """

    moves_pN2: Tensor

    def __init__(self, moves_pN2: Tensor) -> None:
        super().__init__()
        self.n_parameters = len(moves_pN2)
        self.register_buffer("moves_pN2", moves_pN2, persistent=False)

    def warp_base(self, beta: Tensor, base_N2: Tensor, kept: slice | Tensor) -> Tensor:
        """Return `warp` of `base_N2`, the constructor's positions at the indices `kept`, by one matrix product."""
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
        grid: number of control points along each side.
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
        """Solve warp(x) = points by Newton's method; where the spline folds, return the nearest solution found."""
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
            x = x - _least_squares_2x2(jacobian, residual).nan_to_num().clamp(-0.5, 0.5)
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


class TransformSequence(nn.Module):
    """The modules of a method in the order in which they are applied, for pictures of one size.

    A canvas holds all channels that are warped together: the first ones are a picture, to which all modules apply; only
    the spatial modules apply to further ones (the Gaussian mixture's scales).

    Args:
        names: names of spatial and morphological transformations, such as ["affine", "tps"].
        channels, height, width: shape of the pictures.
        tps_grid: number of control points along each side of a thin plate spline.
        morphology_kernel: side of the morphological window in px.
        padding: values beyond the border of a picture: ``border`` continues the border, ``zeros`` are black.
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
        self.sizes = {
            name: self._spatial[name].n_parameters if name in self._spatial else self._morphology.n_parameters
            for name in names
        }
        """Number of parameters of each module."""

    def moves(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether any module in `parameters` is spatial."""
        return any(name in self._spatial for name in parameters)

    def screens(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether `transform_each` can compute only a part of the output pixels, and whether this saves time."""
        return self.moves(parameters) and len(self._runs(parameters)) == 1 and not self.convolves(parameters)

    def convolves(self, parameters: Mapping[str, Tensor]) -> bool:
        """Whether any module in `parameters` convolves pictures."""
        return "morphological" in parameters

    def transform(self, canvas: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return canvases (P, C', H, W), each transformed by its own parameters (P, p)."""
        for run in self._runs(parameters):
            canvas = self._apply_run(canvas, run)
        return canvas

    def transform_each(self, canvas: Tensor, parameters: Mapping[str, Tensor], stride: int = 1) -> Tensor:
        """Return (K, B, C', H', W'): canvases (K, C', H, W), each transformed by each of its B parameters (K, B, p).

        Args:
            stride: stride of the output pixels that are computed, see `every`; must be 1 unless `screens`.
        """
        first, *later = self._runs(parameters)
        if self.moves(first) and "morphological" not in first:
            # All warps of a canvas are stacked vertically in one tall picture, so that the canvas is not copied.
            points = self.points(first, stride)
            tall = sample(canvas, points.flatten(1, 2), self.padding)
            canvas = tall.unflatten(2, (points.shape[1], -1)).transpose(1, 2)
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
        """Split the modules in `parameters` into runs; the modules of a run are applied at once.

        Within a run, morphology is applied first, then one sampling for all spatial modules.
        """
        runs: list[dict[str, Tensor]] = []
        for name in self.names:
            if name not in parameters:
                continue
            if not runs or name == "morphological":
                runs.append({})
            runs[-1][name] = parameters[name]
        return runs

    def _apply_run(self, canvas: Tensor, run: Mapping[str, Tensor]) -> Tensor:
        if "morphological" in run:
            picture = self._morphology.apply(run["morphological"], canvas[:, : self.channels])
            canvas = torch.cat([picture, canvas[:, self.channels :]], dim=1)
        if self.moves(run):
            canvas = sample(canvas, self.points(run), self.padding)
        return canvas

    def points(self, parameters: Mapping[str, Tensor], stride: int = 1) -> Tensor:
        """Return the position (..., H', W', 2) in the prototype of each output pixel.

        Args:
            parameters: parameters (..., p) of each active module.
            stride: stride of the output pixels in both directions; see `every`.
        """
        kept: slice | Tensor = slice(None)
        shape = (self.height, self.width)
        if stride > 1:
            grid = every(torch.arange(len(self.base_N2), device=self.base_N2.device).view(shape), stride)
            shape, kept = (grid.shape[0], grid.shape[1]), grid.reshape(-1)
        base = points = self.base_N2[kept]
        # T_M(... T_1(c)): the last module is applied to an output position first.
        for name in reversed([name for name in self.names if name in parameters and name in self._spatial]):
            transform = self._spatial[name]
            if isinstance(transform, LinearTransform) and points is base:
                points = transform.warp_base(parameters[name], base, kept)
            else:
                points = transform.warp(parameters[name], points)
        return points.unflatten(-2, shape)

    def invert(self, images_BCHW: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return `images_BCHW` (B, C, H, W) in the frames of their prototypes.

        Morphology has no inverse, so strokes keep their thickness.
        """
        points = self.base_N2
        moved = False
        for name in self.names:
            if name in parameters and name in self._spatial:
                points, moved = self._spatial[name].unwarp(parameters[name], points), True
        if not moved:
            return images_BCHW
        return sample(images_BCHW, points.unflatten(-2, (self.height, self.width)), self.padding)


def every(pixels: Tensor, stride: int) -> Tensor:
    """Return every `stride`-th pixel of (..., H, W) in both directions, starting at the middle of the first block."""
    return pixels[..., stride // 2 :: stride, stride // 2 :: stride]


def _moves_along_axes(moves_NG: Tensor, by_axis: bool) -> Tensor:
    """Return displacements (2 G, N, 2): along x for one half of the parameters, and the same along y for the other.

    Args:
        moves_NG: displacement of each of N points per unit of each of G parameters.
        by_axis: whether all parameters of x precede those of y; otherwise they alternate.
    """
    moves_GcNc = torch.einsum("ng,ij->ginj", moves_NG, torch.eye(2, dtype=moves_NG.dtype, device=moves_NG.device))
    return (moves_GcNc.transpose(0, 1) if by_axis else moves_GcNc).flatten(0, 1)


def _linear(matrix: Tensor, points: Tensor) -> Tensor:
    """Return (..., R, N): the rows of `matrix` (..., R, 3) times (x, y, 1) of `points` (N, 2) or (..., N, 2)."""
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1).mT
    if homogeneous.dim() > 2:
        return matrix @ homogeneous
    # One large product instead of a batch of tiny ones.
    return (matrix.flatten(0, -2) @ homogeneous).unflatten(0, matrix.shape[:-1])


def _divided(matrix: Tensor, points: Tensor) -> Tensor:
    """Return `points` mapped by the homographies `matrix` (..., 3, 3)."""
    homogeneous = _linear(matrix, points)
    return (homogeneous[..., :2, :] / homogeneous[..., 2:, :].clamp_min(SMALLEST_DIVISOR)).mT


def _adjugate(matrix: Tensor) -> Tensor:
    """Return the inverse homographies (..., 3, 3), scaled so that their last entry is one.

    A homography without an inverse gives finite values without a meaning.
    """
    a, b, c = matrix.unbind(-2)
    adjugate = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=-1)
    return (adjugate / adjugate[..., 2:, 2:]).nan_to_num(0.0, 0.0, 0.0)


def _least_squares_2x2(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve `matrix` (..., 2, 2) x = `right` (..., 2) by damped normal equations, which singular matrices have too."""
    normal = matrix.mT @ matrix
    damping = torch.finfo(matrix.dtype).eps * normal.diagonal(dim1=-2, dim2=-1).sum(-1)
    a, b, d = normal[..., 0, 0] + damping, normal[..., 0, 1], normal[..., 1, 1] + damping
    x, y = (matrix.mT @ right[..., None])[..., 0].unbind(-1)
    return torch.stack([d * x - b * y, a * y - b * x], dim=-1) / (a * d - b * b)[..., None]


def sample(images_PCHW: Tensor, points_PHW2: Tensor, padding: Padding = "border") -> Tensor:
    """Sample `images_PCHW` bilinearly at `points_PHW2`; `padding` decides the values beyond the border."""
    return grid_sample(images_PCHW, points_PHW2, mode="bilinear", padding_mode=padding, align_corners=False)
