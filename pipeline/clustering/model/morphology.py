"""The morphological transformation: soft dilation and erosion (DTI paper, equation 6).

Shapes: P pictures, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, pad

WINDOW_LOGIT = 5.0
"""Logit of the centre of a morphological window; all other positions have its negative."""
LARGEST_SOFTNESS = 30.0
"""Bound on |alpha|: at the bound a soft maximum equals the maximum, and its exponentials are far from overflow."""


class Morphology:
    """Soft dilation (alpha > 0) or erosion (alpha < 0) over a learned window (equation 6), each channel alike.

    beta = [alpha, window row by row]. The paper's window weights lie in [0, 1]. Here the weight of the centre is
    sigmoid(beta + 5), and the weight of every other position is max(0, sigmoid(beta - 5) - sigmoid(-5)): with the
    plain sigmoid, training would begin with a blur in which only three quarters of a pixel come from the pixel itself.
    The drawback is that a position is closed, and has no gradient, for an image whose parameter is below 0. It opens
    again through other images, since a network predicts the parameters of all images. Beyond the border a picture is 0.

    Args:
        kernel: side of the window in px, odd.
    """

    def __init__(self, kernel: int) -> None:
        self.kernel = kernel
        self.n_parameters = 1 + kernel * kernel

    def apply(self, beta: Tensor, pictures: Tensor) -> Tensor:
        """Return `pictures` (P, C, H, W), each transformed by its own parameters `beta` (P, p)."""
        alpha = beta[:, 0].clamp(-LARGEST_SOFTNESS, LARGEST_SOFTNESS)
        return morphology(pictures, alpha, self.window(beta[:, 1:]).unflatten(1, (self.kernel, self.kernel)))

    def window(self, beta: Tensor) -> Tensor:
        """Return weights (P, kernel^2) in [0, 1] for as many parameters; at zero, only the centre has a weight."""
        centre = self.kernel * self.kernel // 2
        closed = torch.sigmoid(beta.new_tensor(-WINDOW_LOGIT))
        weights = (torch.sigmoid(beta - WINDOW_LOGIT) - closed).clamp_min(0)
        middle = torch.sigmoid(
            beta[:, centre : centre + 1].clamp_min(-2 * WINDOW_LOGIT) + WINDOW_LOGIT
        )  # at least one weight > 0
        return torch.cat([weights[:, :centre], middle, weights[:, centre + 1 :]], dim=1)


def morphology(pictures_PCHW: Tensor, alpha_P: Tensor, window_Phw: Tensor) -> Tensor:
    """Return at each pixel the mean over the window, weighted by `window` * exp(alpha * pixel) (equation 6).

    With e = exp(alpha x) this is conv(x e, window) / conv(e, window): two depth-wise convolutions, whereas a sum over
    the window would hold every window position of every pixel in memory.

    Args:
        pictures_PCHW: pictures; beyond their border they are 0.
        alpha_P: softness; exponentials are taken relative to middle grey, which cancels and keeps them small.
        window_Phw: weights >= 0, not all 0, with an odd number of rows and columns.
    """
    channels = pictures_PCHW.shape[1]
    rows, columns = window_Phw.shape[1:]
    x = pad(pictures_PCHW, (columns // 2, columns // 2, rows // 2, rows // 2)).flatten(0, 1)
    # Prototypes may leave [0, 1]; how far they do is irrelevant for which pixels are lightest or darkest.
    e = (x.clamp(-1, 2).sub_(0.5) * alpha_P.repeat_interleave(channels)[:, None, None]).exp_()
    kernels = window_Phw.repeat_interleave(channels, dim=0)
    correlate: Callable[[Tensor, Tensor], Tensor] = _CPUCorrelation.apply if x.is_cpu else _correlated
    return (correlate(x * e, kernels) / correlate(e, kernels)).view_as(pictures_PCHW)


def _correlated(planes_NHW: Tensor, kernels_Nhw: Tensor) -> Tensor:
    """Return the correlation of each plane with its kernel, at all positions where the kernel is inside the plane."""
    return conv2d(planes_NHW[None], kernels_Nhw[:, None], groups=len(planes_NHW))[0]


class _CPUCorrelation(torch.autograd.Function):
    """`_correlated` with gradients that are computed as correlations, too.

    On a CPU, torch's own gradient of a depth-wise kernel takes fifteen times as long. On a GPU it does not.
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
