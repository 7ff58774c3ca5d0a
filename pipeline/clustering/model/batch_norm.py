"""Batch normalisation over the batches of all DDP workers, so that N workers compute what one computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm

from pipeline.clustering.workers import rank_and_world_size, sum_over_workers


class _NormOverWorkers(torch.autograd.Function):
    """Batch normalisation by the moments of all workers' batches, computed by torch's kernels for a single worker.

    These kernels take a fraction of the time of separate operations, most of which is spent on reading activations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return normalised `x` (B, C, H, W), and in float64 mean, variance (C,) and number of all workers' values."""
        n = x.numel() / x.shape[1]
        # The moments have the type of these running moments, which are not used otherwise.
        running = torch.zeros_like(weight), torch.ones_like(weight)
        mean, variance = (value.double() for value in torch.batch_norm_update_stats(x, *running, 0.0))
        square = variance + mean.square()
        moments = sum_over_workers(n * torch.cat([mean, square, torch.ones_like(mean[:1])]))
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
        sums = sum_over_workers(torch.stack([bias_gradient, weight_gradient]).double())
        # The terms that subtract the means of the gradient and of its product with the normalised values.
        scale = weight * inverse_std
        constant, slope = -sums / total * scale
        slope = slope * inverse_std
        offset = constant - slope * mean
        zeros, ones = torch.zeros_like(weight), torch.ones_like(weight)
        x_gradient = batch_norm(x, zeros, ones, slope.to(weight), offset.to(weight), training=False, eps=0.0)
        coarse = scale.to(x)
        x_gradient.addcmul_(gradient, coarse[:, None, None])
        if x.dtype != scale.dtype:  # add the part of `scale` that was lost when it was rounded to the type of x
            x_gradient.addcmul_(gradient, (scale - coarse).to(x)[:, None, None])
        return x_gradient, weight_gradient, bias_gradient, None


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all DDP workers, on any device.

    With it, N workers compute what one worker computes on the whole batch. (torch's SyncBatchNorm needs a GPU.)
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or rank_and_world_size()[1] == 1:
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
