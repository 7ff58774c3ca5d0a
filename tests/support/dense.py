"""Reference implementation of Algorithm 1 and equation 4, which transforms all prototypes onto all images.

Gradients come from autograd. The transformations are implemented from the formulas of the paper, for one image and one
prototype at a time, in the precision of the input (float64 in tests), and share no code with those of the pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


def pixel_centres(height: int, width: int) -> Tensor:
    """Return (H, W, 3): homogeneous (x, y, 1) of all pixel centres, where the picture covers [-1, 1] x [-1, 1]."""
    rows = []
    for i in range(height):
        for j in range(width):
            rows.append([(2 * j + 1) / width - 1, (2 * i + 1) / height - 1, 1.0])
    return torch.tensor(rows, dtype=torch.float64).reshape(height, width, 3)


def affine_points(beta: Tensor, points: Tensor) -> Tensor:
    """Apply [I | 0] + beta to homogeneous points."""
    matrix = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64) + beta.reshape(2, 3)
    return torch.einsum("ij,hwj->hwi", matrix, points)


def projective_points(beta: Tensor, points: Tensor) -> Tensor:
    """Apply I + beta, whose last entry is fixed at one, to homogeneous points."""
    matrix = torch.eye(3, dtype=torch.float64) + torch.cat([beta, beta.new_zeros(1)]).reshape(3, 3)
    mapped = torch.einsum("ij,hwj->hwi", matrix, points)
    return mapped[..., :2] / mapped[..., 2:].clamp(min=0.1)


def tps_points(beta: Tensor, points: Tensor, grid: int = 4) -> Tensor:
    """Apply the thin plate spline through the moved control points, from Bookstein's linear system."""
    axis = [-1 + 2 * i / (grid - 1) for i in range(grid)]
    control = torch.tensor([[x, y] for y in axis for x in axis], dtype=torch.float64)
    targets = control + beta.reshape(-1, 2)
    n = len(control)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        r = torch.cdist(a, b)
        return torch.where(r > 0, r**2 * torch.log(r.clamp(min=1e-300)), torch.zeros_like(r))

    system = torch.zeros(n + 3, n + 3, dtype=torch.float64)
    system[:n, :n] = kernel(control, control)
    system[:n, n] = system[n, :n] = 1
    system[:n, n + 1 :] = control
    system[n + 1 :, :n] = control.T
    right = torch.cat([targets, torch.zeros(3, 2, dtype=torch.float64)])
    solution = torch.linalg.solve(system, right)
    flat = points[..., :2].reshape(-1, 2)
    values = kernel(flat, control) @ solution[:n] + solution[n] + flat @ solution[n + 1 :]
    return values.reshape(points[..., :2].shape)


POINTS = {"affine": affine_points, "projective": projective_points, "tps": tps_points}


def morphology_sum(picture: Tensor, beta: Tensor) -> Tensor:
    """Evaluate equation 6 for one picture (C, H, W), one window position at a time, with zeros beyond the border."""
    alpha, raw = beta[0], beta[1:]
    side = math.isqrt(len(raw))
    reach = side // 2
    channels, height, width = picture.shape
    padded = torch.zeros(channels, height + 2 * reach, width + 2 * reach, dtype=picture.dtype)
    padded[:, reach : reach + height, reach : reach + width] = picture
    above = below = torch.zeros_like(picture)
    for u in range(side):
        for v in range(side):
            b = raw[u * side + v]
            centre = u == v == reach
            # sigmoid(b - 5) as in the paper, minus its value at b = 0, so that b = 0 is the identity.
            a = 1 / (1 + torch.exp(-b - 5)) if centre else 1 / (1 + torch.exp(5 - b)) - 1 / (1 + math.exp(5))
            a = torch.clamp(a, min=0)
            x = padded[:, u : u + height, v : v + width]
            above = above + x * a * torch.exp(alpha * x)
            below = below + a * torch.exp(alpha * x)
    return above / below


def transform(
    picture_CHW: Tensor, names: Sequence[str], beta: dict[str, Tensor], colors: int, padding: str = "border"
) -> Tensor:
    """Apply T_M o ... o T_1 to one picture, module by module.

    Colour and morphology apply to the first `colors` channels. Adjacent spatial modules are one sampling. Beyond the
    border, values are those of the border or zeros (`padding`).
    """
    out, pending = picture_CHW, []
    for name in [n for n in names if n in beta]:
        if name in POINTS:
            pending.append(name)
        elif name == "color":
            if padding == "zeros":
                out, pending = _warp(out, pending, beta, padding), []
            weight, bias = beta["color"][:colors], beta["color"][colors:]
            colored = (1 + weight)[:, None, None] * out[:colors] + bias[:, None, None]
            out = torch.cat([colored, out[colors:]])
        else:
            out, pending = _warp(out, pending, beta, padding), []
            out = torch.cat([morphology_sum(out[:colors], beta[name]), out[colors:]])
    return _warp(out, pending, beta, padding)


def _warp(picture: Tensor, names: Sequence[str], beta: dict[str, Tensor], padding: str) -> Tensor:
    points = pixel_centres(*picture.shape[1:])
    for name in reversed(names):
        moved = POINTS[name](beta[name], points)
        points = torch.cat([moved, torch.ones_like(moved[..., :1])], dim=-1)
    if not names:
        return picture
    grid = points[None, ..., :2].to(picture)
    return grid_sample(picture[None], grid, padding_mode=padding, align_corners=False)[0]


def pixel_weights(height: int, width: int, std: float | None) -> Tensor:
    """Return (H, W): exp(-d^2 / (2 std^2)) with the distance d in px to the centre; 1 everywhere if `std` is None."""
    rows = []
    for i in range(height):
        for j in range(width):
            d2 = (i - (height - 1) / 2) ** 2 + (j - (width - 1) / 2) ** 2
            rows.append(1.0 if std is None else math.exp(-d2 / (2 * std**2)))
    return torch.tensor(rows, dtype=torch.float64).reshape(height, width)


def recolored(
    image: Tensor, picture: Tensor, precision: Tensor, unit: float, gain_std: float = 0.5, bias_std: float = 0.25
) -> tuple[Tensor, Tensor]:
    """Return `picture` (C, H, W) in the colours that fit `image` best, and the negative log of their prior, doubled.

    Each channel is a least-squares problem with one row per pixel, and one row for each of both priors. `precision`
    (C, H, W) are the weights of the pixels, `unit` is the weight of the priors. Gradients pass through the solution.
    """
    channels, penalties = [], []
    for target, source, weight in zip(image, picture, precision.expand_as(picture), strict=True):
        root = weight.flatten().sqrt()
        design = torch.stack([root * source.flatten(), root], dim=1)
        prior = torch.diag(torch.tensor([1 / gain_std, 1 / bias_std], dtype=source.dtype)) * math.sqrt(unit)
        right = torch.cat([root * target.flatten(), prior @ torch.tensor([1.0, 0.0], dtype=source.dtype)])
        gain, bias = torch.linalg.lstsq(torch.cat([design, prior]), right[:, None]).solution[:, 0]
        channels.append(gain * source + bias)
        penalties.append(unit * (((gain - 1) / gain_std) ** 2 + (bias / bias_std) ** 2))
    return torch.stack(channels), torch.stack(penalties).sum()


def log_gaussians(
    images: Tensor,
    mu: Tensor,
    scale: Tensor | None,
    names: Sequence[str],
    parameters: dict[str, Tensor],
    min_std: float,
    padding: str = "border",
    weight_std: float | None = None,
    fit_color: bool = False,
) -> Tensor:
    """Return (B, K): log G(x_i; T(mu_k), T*(Sigma_k) + sigma_min^2), with parameters (B, K, p) per module.

    Without `scale`, all variances are sigma_min^2. With `fit_color`, prototypes are `recolored`, with the prior.
    """
    weight = pixel_weights(images.shape[2], images.shape[3], weight_std)
    rows = []
    for i, image in enumerate(images):
        row = []
        for k in range(len(mu)):
            beta = {name: value[i, k] for name, value in parameters.items()}
            canvas = mu[k] if scale is None else torch.cat([mu[k], scale[k]])
            both = transform(canvas, names, beta, colors=len(image), padding=padding)
            mean, variance = both[: len(image)], torch.full_like(image, min_std**2)
            if scale is not None:
                variance = both[len(image) :] ** 2 + min_std**2
            penalty: Tensor | float = 0.0
            if fit_color:
                mean, penalty = recolored(image, mean, weight / variance, 1.0)
            terms = -0.5 * ((image - mean) ** 2 / variance + torch.log(2 * math.pi * variance))
            row.append((weight * terms).sum() - penalty / 2)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def gmm_step(log_g: Tensor, log_pi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss to back-propagate, the negative log-likelihood and the responsibilities of Algorithm 1."""
    joint = log_g + log_pi
    gamma = torch.softmax(joint, 1).detach()
    return -(gamma * joint).sum() / len(joint), -torch.logsumexp(joint, 1).mean().detach(), gamma


def squared_errors(
    images: Tensor,
    mu: Tensor,
    names: Sequence[str],
    parameters: dict[str, Tensor],
    padding: str = "border",
    weight_std: float | None = None,
    fit_color: bool = False,
    min_std: float = 0.25,
) -> Tensor:
    """Return (B, K): the weighted mean of (x_i - T(c_k))^2 over pixels and channels.

    With `fit_color`, prototypes are `recolored`; the prior has the weight that it has with variances of `min_std`^2.
    """
    weight = pixel_weights(images.shape[2], images.shape[3], weight_std)
    rows = []
    for i, image in enumerate(images):
        errors = []
        for k in range(len(mu)):
            beta = {name: value[i, k] for name, value in parameters.items()}
            picture = transform(mu[k], names, beta, colors=len(image), padding=padding)
            penalty: Tensor | float = 0.0
            if fit_color:
                precision = 2 / image.numel()
                picture, penalty = recolored(image, picture, weight * precision, precision * min_std**2)
            errors.append((weight * (image - picture) ** 2).mean() + penalty / 2)
        rows.append(torch.stack(errors))
    return torch.stack(rows)
