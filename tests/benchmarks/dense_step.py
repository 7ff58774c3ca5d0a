"""The denominator of bench_step: one training step as the DTI paper's algorithm reads, without any shortcut.

Every prototype has its own predictor network and is transformed onto every image of the batch, one module after the
other, the identity first; means and scales separately; the morphological window as a sum over its positions; autograd
records all of it (Algorithm 1 for the mixture, equation 4 for K-means). Float32 throughout. README.md compares what it
costs with the code that the paper's authors released.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, unfold

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

    def _transformed(self, picture_CHW: Tensor, n: int, parameters: dict[str, Tensor]) -> Tensor:
        """(n, C, H, W): one prototype transformed onto n images."""
        out = picture_CHW.repeat(n, 1, 1, 1)
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
        else:
            grid = self.sequence.points({name: beta})
        return grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)

    @staticmethod
    def _morphology(beta: Tensor, pictures: Tensor) -> Tensor:
        """Equation 6 as it reads: a sum over the 49 positions of the window."""
        offset = torch.full((49,), -5.0)
        offset[24] = 5.0
        window = (beta[:, 1:] + offset).sigmoid()[:, :, None]
        x = unfold(pictures, 7, padding=3)
        weights = window * (beta[:, :1, None] * x).exp()
        return ((x * weights).sum(1) / weights.sum(1)).view_as(pictures)
