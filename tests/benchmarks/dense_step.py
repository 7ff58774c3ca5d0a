"""The reference of bench_step: one training step that follows the DTI paper's algorithm literally.

It implements Algorithm 1 for the mixture and equation 4 for K-means, in float32, and autograd records everything. Every
prototype has its own predictor network and is transformed onto every image of the batch, one module after the other,
means and scales separately. Warps compute the position of every point: homographies in homogeneous coordinates, TPS as
the spline's kernel times the solved coefficients. The morphological module sums over the positions of its window. Only
the layers of the encoder are shared with the pipeline. README.md compares the cost of this step with that of the code
released by the paper's authors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, unfold

from pipeline.clustering.model.predictor import build_encoder

MIN_STD = 0.25
"""Minimum standard deviation; its square is added to the squared scales."""


class DensePrototypes(nn.Module):
    """K prototypes, each with its own predictors; all images are scored with one prototype after the other.

    Shapes: B images, K prototypes, C channels, H x W pixels.

    Args:
        initial_KCHW: initial prototypes, in [0, 1].
        names: transformation modules, in the order in which they are applied.
        gmm: whether to train a Gaussian mixture (Algorithm 1) instead of K-means (equation 4).
    """

    def __init__(self, initial_KCHW: Tensor, names: Sequence[str], gmm: bool) -> None:
        super().__init__()
        self.names, self.gmm = list(names), gmm
        k, *shape = initial_KCHW.shape
        self.channels, self.height, self.width = shape
        self.prototypes = nn.Parameter(initial_KCHW.clone())
        self.scales = nn.Parameter(torch.full_like(initial_KCHW, 0.5))
        self.eta = nn.Parameter(torch.ones(k))
        self.encoder = build_encoder("auto", self.channels, self.height, self.width)
        sizes = {"color": 2 * self.channels, "affine": 6, "projective": 8, "tps": 32, "morphological": 50}
        self.predictors = nn.ModuleList(
            nn.ModuleDict({name: self._mlp(sizes[name]) for name in names}) for _ in range(k)
        )
        identity = torch.eye(2, 3)[None]
        self.positions = affine_grid(identity, [1, 1, self.height, self.width], align_corners=False).view(-1, 2)
        axis = torch.linspace(-1, 1, 4)
        self.control = torch.cartesian_prod(axis, axis).flip(1)
        system = torch.zeros(19, 19)
        system[:16] = self._spline_basis(self.control)
        system[16:, :16] = system[:16, 16:].T
        self.solution = torch.linalg.inv(system)[:, :16]
        self.basis = self._spline_basis(self.positions)

    def _mlp(self, outputs: int) -> nn.Module:
        last = nn.Linear(128, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        width = self.encoder.features
        return nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), last)

    def loss(self, images: Tensor) -> Tensor:
        """Return the loss to minimise, of images (B, C, H, W)."""
        features = self.encoder(images)
        means, scales = [], []
        for k, predictors in enumerate(self.predictors):
            assert isinstance(predictors, nn.ModuleDict)
            parameters = {name: predictors[name](features) for name in self.names}
            means.append(self._transformed(self.prototypes[k], len(images), parameters))
            if self.gmm:
                spatial = {name: beta for name, beta in parameters.items() if name not in {"color", "morphological"}}
                scales.append(self._transformed(self.scales[k], len(images), spatial))
        mean_BK = torch.stack(means, 1)
        if not self.gmm:
            return (images[:, None] - mean_BK).square().flatten(2).mean(2).min(1).values.mean()
        variance_BK = torch.stack(scales, 1) ** 2 + MIN_STD**2
        log_density = -((images[:, None] - mean_BK) ** 2) / (2 * variance_BK) - (2 * math.pi * variance_BK).log() / 2
        joint = log_density.flatten(2).sum(2) + self.eta.log_softmax(0)
        gamma = joint.detach().softmax(1)
        return -(gamma * joint).sum(1).mean()

    def _transformed(self, prototype_CHW: Tensor, n: int, parameters: dict[str, Tensor]) -> Tensor:
        """Return one prototype transformed onto n images: (n, C, H, W)."""
        out = prototype_CHW.repeat(n, 1, 1, 1)
        for name, beta in parameters.items():
            out = self._module(name, beta, out)
        return out

    def _module(self, name: str, beta: Tensor, pictures: Tensor) -> Tensor:
        if name == "color":
            weight, bias = beta[..., None, None].chunk(2, dim=1)
            return (1 + weight) * pictures + bias
        if name == "morphological":
            return self._morphology(beta, pictures)
        if name == "affine":
            grid = affine_grid(torch.eye(2, 3) + beta.view(-1, 2, 3), list(pictures.shape), align_corners=False)
        elif name == "projective":
            grid = self._projected(beta).view(-1, self.height, self.width, 2)
        else:
            coefficients = self.solution @ (self.control + beta.view(-1, 16, 2))
            grid = (self.basis @ coefficients).view(-1, self.height, self.width, 2)
        return grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _projected(self, beta: Tensor) -> Tensor:
        """Return the positions of all pixels under n homographies: (n, H W, 2)."""
        homography = torch.eye(3) + torch.cat([beta, torch.zeros(len(beta), 1)], dim=1).view(-1, 3, 3)
        homogeneous = torch.cat([self.positions, torch.ones(len(self.positions), 1)], dim=1)
        x, y, divisor = (homography @ homogeneous.T.expand(len(beta), -1, -1)).unbind(1)
        divisor = divisor.clamp_min(0.1)
        return torch.stack([x / divisor, y / divisor], dim=-1)

    def _spline_basis(self, points: Tensor) -> Tensor:
        """Return the spline's basis at n points: r^2 log r for every control point, then 1, x and y: (n, 19)."""
        squared = (points[:, None] - self.control).square().sum(-1)
        return torch.cat([torch.xlogy(squared, squared) / 2, torch.ones(len(points), 1), points], dim=1)

    @staticmethod
    def _morphology(beta: Tensor, pictures: Tensor) -> Tensor:
        """Apply equation 6 literally: at each pixel, sum over the 49 positions of the window."""
        offset = torch.full((49,), -5.0)
        offset[24] = 5.0
        window = (beta[:, 1:] + offset).sigmoid()[:, None, :]
        x = unfold(pictures, 7, padding=3).mT
        weights = window * (beta[:, :1, None] * x).exp()
        return ((x * weights).sum(2) / weights.sum(2)).view_as(pictures)
