"""The denominator of bench_step: one training step as the DTI paper's algorithm reads, without any shortcut.

Every prototype has its own predictor network, is transformed onto every image of the batch, module after module, and
autograd records all of it (Algorithm 1 for the mixture, equation 4 for K-means). Float32 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from pipeline.clustering.predictor import build_encoder
from pipeline.clustering.transforms import TransformSequence

MIN_STD = 0.25


class DensePrototypes(nn.Module):
    """K prototypes with predictors of their own, scored on all images one prototype after the other."""

    def __init__(self, initial_KCHW: Tensor, names: Sequence[str], gmm: bool) -> None:
        super().__init__()
        self.names, self.gmm = list(names), gmm
        k, *shape = initial_KCHW.shape
        self.channels, self.height, self.width = shape
        self.prototypes = nn.Parameter(initial_KCHW.clone())
        self.scales = nn.Parameter(torch.full_like(initial_KCHW, 0.5))
        self.eta = nn.Parameter(torch.ones(k))
        self.encoder = build_encoder("auto", self.channels, self.height, self.width)
        self.sequence = TransformSequence(names, self.channels, self.height, self.width)
        self.predictors = nn.ModuleList(
            nn.ModuleDict({name: self._mlp(self.sequence.sizes[name]) for name in names}) for _ in range(k)
        )

    def _mlp(self, outputs: int) -> nn.Module:
        last = nn.Linear(128, outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        width = self.encoder.features
        return nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), last)

    def loss(self, images: Tensor) -> Tensor:
        """The loss that is back-propagated."""
        features = self.encoder(images)
        means, scales = [], []
        for k, predictors in enumerate(self.predictors):
            assert isinstance(predictors, nn.ModuleDict)
            mean = self.prototypes[k].expand(len(images), -1, -1, -1)
            scale = self.scales[k].expand(len(images), -1, -1, -1)
            for name in self.names:
                beta = predictors[name](features)
                mean, scale = self._transformed(name, beta, mean, scale)
            means.append(mean)
            scales.append(scale)
        mean_BK = torch.stack(means, 1)
        if not self.gmm:
            return (images[:, None] - mean_BK).square().flatten(2).mean(2).min(1).values.mean()
        variance_BK = torch.stack(scales, 1).square() + MIN_STD**2
        log_g = -0.5 * (
            (images[:, None] - mean_BK).square() / variance_BK + variance_BK.log() + math.log(2 * math.pi)
        ).flatten(2).sum(2)
        joint = log_g + self.eta.log_softmax(0)
        gamma = joint.detach().softmax(1)
        return -(gamma * joint).sum(1).mean()

    def _transformed(self, name: str, beta: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        if name == "color":
            weight, bias = beta[..., None, None].chunk(2, dim=1)
            return mean * (1 + weight) + bias, scale
        if name == "affine":
            theta = torch.eye(2, 3) + beta.view(-1, 2, 3)
            grid = affine_grid(theta, list(mean.shape), align_corners=False)
        else:
            grid = self.sequence.points({name: beta})
        warp = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}
        warped = grid_sample(mean, grid, **warp)  # type: ignore[arg-type]
        return warped, grid_sample(scale, grid, **warp) if self.gmm else scale  # type: ignore[arg-type]
