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
from torch.nn.functional import batch_norm, max_pool2d, relu

from pipeline.clustering.workers import place, summed

HIDDEN = 128
"""Units of each of the two hidden layers of a predictor."""
SMALL_PX = 64
"""Images with a shorter side below this are encoded by ResNet-20."""


class _NormOverWorkers(torch.autograd.Function):
    """Batch normalisation by the moments of all workers' batches, computed by torch's own kernels for one worker.

    Those take a part of the time of the same in single operations: most of it goes into reading activations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised `x` (B, C, H, W); mean and variance (C,) over all workers, and of how many values, float64."""
        n = x.numel() / x.shape[1]
        # Their type is that of the running moments, which nobody needs here.
        running = torch.zeros_like(weight), torch.ones_like(weight)
        mean, variance = (value.double() for value in torch.batch_norm_update_stats(x, *running, 0.0))
        square = variance + mean.square()
        moments = summed(n * torch.cat([mean, square, torch.ones_like(mean[:1])]))
        total = moments[-1]
        mean, square = (moments[:-1] / total).chunk(2)
        variance = (square - mean.square()).clamp_min(0)
        inverse_std = (variance + eps).rsqrt()
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean.to(weight), inverse_std.to(weight), total)
        ctx.mark_non_differentiable(mean, variance, total)
        y = batch_norm(x, mean.to(weight), variance.to(weight), weight, bias, training=False, eps=eps)
        return y, mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std, total = ctx.saved_tensors
        _, weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse_std, True, ctx.eps, [False, True, True]
        )
        sums = summed(torch.stack([bias_gradient, weight_gradient]).double())
        # What the gradient's mean, and that of its product with what is normalised, take from it.
        scale = weight * inverse_std
        constant, slope = -sums / total * scale
        slope = slope * inverse_std
        offset = constant - slope * mean
        zeros, ones = torch.zeros_like(weight), torch.ones_like(weight)
        x_gradient = batch_norm(x, zeros, ones, slope.to(weight), offset.to(weight), training=False, eps=0.0)
        coarse = scale.to(x)
        x_gradient.addcmul_(gradient, coarse[:, None, None])
        if x.dtype != scale.dtype:  # what rounding has taken from the factors of whole channels
            x_gradient.addcmul_(gradient, (scale - coarse).to(x)[:, None, None])
        return x_gradient, weight_gradient, bias_gradient, None


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batch of all DDP workers, on any device.

    With it, N workers compute what one worker computes on the whole batch. (torch's SyncBatchNorm needs a GPU.)
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or place()[1] == 1:
            return super().forward(x)
        y, mean, variance, n = _NormOverWorkers.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), momentum)
            self.running_var.lerp_((variance * (n / (n - 1))).to(self.running_var), momentum)
        normalised: Tensor = y
        return normalised


class _MaxPool(torch.autograd.Function):
    """Maximum of 3x3 pixels at every other pixel, which remembers its input only.

    torch's own keeps 8 bytes for each maximum besides, to know where it was: as much as all the input in bfloat16.
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
            (found,) = torch.autograd.grad(max_pool2d(x, 3, 2, 1), x, gradient)
        return found


class LeanMaxPool(nn.Module):
    """`nn.MaxPool2d(3, 2, 1)` in less memory."""

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = _MaxPool.apply(x)  # type: ignore[no-untyped-call]
        return pooled


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, projected where the shape changes."""

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
        out: Tensor = self.body(x)  # of a normalisation, which needs it no more
        return out.add_(self.shortcut(x)).relu_()


class ResNet(nn.Sequential):
    """Residual network, truncated after global average pooling: (B, C, H, W) to (B, features).

    Args:
        stem: layers before the residual stages.
        widths: channels of each stage; every stage but the first halves the resolution.
        blocks: residual blocks per stage.
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


def build_encoder(name: str, channels: int, height: int, width: int) -> ResNet:
    """The backbone `name` (``resnet18``, ``resnet20``, or ``auto``: by image size) for images of that shape."""
    if name == "auto":
        name = "resnet20" if min(height, width) < SMALL_PX else "resnet18"
    if name == "resnet20":
        stem = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False), GlobalBatchNorm(16), nn.ReLU(inplace=True)]
        return ResNet(stem, (16, 32, 64), blocks=3)
    stem = [
        nn.Conv2d(channels, 64, 7, 2, 3, bias=False),
        GlobalBatchNorm(64),
        LeanMaxPool(),
        nn.ReLU(inplace=True),  # after the pooling, which it commutes with: a quarter of the work
    ]
    return ResNet(stem, (64, 128, 256, 512), blocks=2)


class PrototypeHeads(nn.Module):
    """One MLP per prototype, in -> 128 -> 128 -> p, all evaluated as batched matrix products.

    The last layer starts at zero, so every prototype starts untransformed. Dimension 0 of every parameter is the
    prototype.
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
        """(B, K, p): the parameters of every prototype for every image."""
        x = features_BF.expand(len(self.weights[0]), -1, -1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, relu(x) if layer else x, weight)
        return x.transpose(0, 1)
