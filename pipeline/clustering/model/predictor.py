"""Networks that predict transformation parameters: one shared encoder, one small MLP per prototype and module.

DTI paper, section 4.1, "Parameters prediction network".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import max_pool2d, relu

from pipeline.clustering.model.batch_norm import GlobalBatchNorm

HIDDEN = 128
"""Number of units of each of the two hidden layers of a predictor."""
SMALL_PX = 64
"""Length of the shorter side below which images are encoded by ResNet-20."""


SMALLEST_INPUT_PX, LARGEST_INPUT_PX = 14, 16
"""Bounds of the default side in px of the encoder's input."""


class _MaxPool(torch.autograd.Function):
    """Maximum of 3x3 pixels at every other pixel, which saves only its input for the gradient.

    torch's own function also saves the position of each maximum in 8 bytes: as much as the whole input in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return max_pool2d(x, 3, 2, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (x_gradient,) = torch.autograd.grad(max_pool2d(x, 3, 2, 1), x, gradient)
        return x_gradient


class LeanMaxPool(nn.Module):
    """`nn.MaxPool2d(3, 2, 1)` with less memory."""

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = _MaxPool.apply(x)  # type: ignore[no-untyped-call]
        return pooled


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            GlobalBatchNorm(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            GlobalBatchNorm(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), GlobalBatchNorm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)  # the output of a normalisation, whose gradient does not need it
        return out.add_(self.shortcut(x)).relu_()


class ResNet(nn.Sequential):
    """Residual network that ends with global average pooling: (B, C, H, W) to (B, features).

    Args:
        stem: layers before the residual stages.
        widths: number of channels of each stage; every stage but the first halves the resolution.
        blocks: number of residual blocks per stage.
    """

    def __init__(self, stem: Sequence[nn.Module], widths: Sequence[int], blocks: int) -> None:
        layers = list(stem)
        inputs = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(ResidualBlock(inputs, width, stride=2 if stage and not block else 1))
                inputs = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.features = widths[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def build_encoder(name: str, channels: int, height: int, width: int, input_px: int | None = None) -> ResNet:
    """Build an encoder for images of the given shape.

    Args:
        name: ``resnet18``, ``resnet20``, or ``auto``, which chooses by the size of its input; see `SMALL_PX`.
        channels: number of channels C.
        height: height of the images in px.
        width: width of the images in px.
        input_px: shorter side in px to which images are averaged down first. Default: `encoder_side`.
    """
    side = min(height, width)
    input_px = encoder_side(side) if input_px is None else input_px
    reduction: list[nn.Module] = []
    if input_px < side:
        height, width = round(height * input_px / side), round(width * input_px / side)
        reduction = [nn.AdaptiveAvgPool2d((height, width))]
    if name == "auto":
        name = "resnet20" if min(height, width) < SMALL_PX else "resnet18"
    if name == "resnet20":
        stem = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False), GlobalBatchNorm(16), nn.ReLU(inplace=True)]
        return ResNet([*reduction, *stem], (16, 32, 64), blocks=3)
    stem = [
        nn.Conv2d(channels, 64, 7, 2, 3, bias=False),
        GlobalBatchNorm(64),
        LeanMaxPool(),
        nn.ReLU(inplace=True),  # it commutes with the pooling, and after it takes a quarter of the work
    ]
    return ResNet([*reduction, *stem], (64, 128, 256, 512), blocks=2)


def encoder_side(side: int) -> int:
    """Return the default side in px of the encoder's input for images of `side` px: a quarter, within bounds.

    tests/benchmarks/README.md has the measurements. Smaller images lose what tells their alignment.
    """
    return min(side, max(SMALLEST_INPUT_PX, min(side // 4, LARGEST_INPUT_PX)))


class PrototypeHeads(nn.Module):
    """One MLP per prototype, features -> 128 -> 128 -> p, all evaluated as batched matrix products.

    The last layer starts at zero, so every prototype starts untransformed. Dimension 0 of every parameter is the
    prototype.

    Args:
        k: number of prototypes.
        features: number of features of an image.
        outputs: number p of parameters of the module.
    """

    def __init__(self, k: int, features: int, outputs: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for inputs, units in ((features, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, outputs)):
            bound = 1 / math.sqrt(inputs)
            last = len(self.weights) == 2
            weight = torch.zeros(k, inputs, units) if last else torch.empty(k, inputs, units).uniform_(-bound, bound)
            bias = torch.zeros(k, 1, units) if last else torch.empty(k, 1, units).uniform_(-bound, bound)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))

    def forward(self, features_BF: Tensor) -> Tensor:
        """Return the parameters (B, K, p) of every prototype for every image."""
        x = features_BF.expand(len(self.weights[0]), -1, -1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, relu(x) if layer else x, weight)
        return x.transpose(0, 1)
