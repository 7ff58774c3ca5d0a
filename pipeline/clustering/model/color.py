"""Colour: the gain and the bias of each channel with which a prototype fits an image best, in closed form.

The DTI paper predicts both with a network (section 4.1). For one pair of prototype and image they are the solution of a
weighted linear regression with two unknowns per channel, which needs no training and is exact from the first iteration.
Gain and bias have Gaussian priors around the identity, so that a flat prototype has a unique solution too.

Shapes: `...` any leading dimensions, K prototypes, B images, C channels, N pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GAIN_STD = 0.5
"""Standard deviation of the prior of a gain, whose mean is 1."""
BIAS_STD = 0.25
"""Standard deviation of the prior of a bias, whose mean is 0, for pixels in [0, 1]."""
SMALLEST_GAIN = 0.05
"""Lower bound of the absolute value of a gain by which a picture is divided."""


class Moments(NamedTuple):
    """Weighted sums over the pixels of prototypes t and images x, each (..., C), float64."""

    one: Tensor
    """Sum of the weights."""
    t: Tensor
    tt: Tensor
    x: Tensor
    xt: Tensor
    xx: Tensor


class Powers(NamedTuple):
    """Images, prepared once for all prototypes with which they are paired."""

    mean_BC: Tensor
    """Mean of each channel."""
    powers_BCN3: Tensor
    """One, the difference of each pixel from the mean, and its square."""

    @classmethod
    def of(cls, images_BCN: Tensor) -> Powers:
        """Return the powers of images."""
        mean = images_BCN.mean(-1)
        centred = images_BCN - mean[..., None]
        return cls(mean, torch.stack([torch.ones_like(centred), centred, centred.square()], dim=-1))


def pair_moments(pictures_KBCN: Tensor, images: Powers, weights: Tensor) -> Moments:
    """Return the moments (K, B, C) of pictures that were each transformed onto one of the images.

    Args:
        pictures_KBCN: transformed prototypes.
        images: the B images.
        weights: weights of the pixels, of the shape of `pictures_KBCN` or (N).
    """
    picture_mean, powers = pictures_KBCN.mean(-1), images.powers_BCN3
    pictures_KBCN = pictures_KBCN - picture_mean[..., None]
    if weights.dim() > 1:
        one, x, xx = _summed(weights, powers).unbind(-1)
        weighted = weights * pictures_KBCN
        t, xt = _summed(weighted, powers[..., :2]).unbind(-1)
        centred = Moments(one, t, torch.linalg.vecdot(weighted, pictures_KBCN), x, xt, xx)
    else:
        powers = powers * weights[:, None]
        one, x, xx = (part.expand(pictures_KBCN.shape[:3]) for part in powers.sum(2).unbind(-1))
        t, xt = _summed(pictures_KBCN, powers[..., :2]).unbind(-1)
        centred = Moments(one, t, pictures_KBCN.square().matmul(weights), x, xt, xx)
    return _shifted(centred, picture_mean, images.mean_BC)


def still_moments(images_BCN: Tensor, prototypes_KCN: Tensor, weights_KCN: Tensor) -> Moments:
    """Return the moments (B, K, C) of all pairs of images and untransformed prototypes, as matrix products."""
    image_mean, prototype_mean = images_BCN.mean(-1), prototypes_KCN.mean(-1)
    images_BCN, prototypes_KCN = images_BCN - image_mean[..., None], prototypes_KCN - prototype_mean[..., None]
    images, prototypes, weights = (part.transpose(0, 1) for part in (images_BCN, prototypes_KCN, weights_KCN))
    weighted = weights * prototypes  # C, K, N
    shape = (len(images), images.shape[1], prototypes.shape[1])  # C, B, K
    sums = (
        weights.sum(-1)[:, None].expand(shape),
        weighted.sum(-1)[:, None].expand(shape),
        (weighted * prototypes).sum(-1)[:, None].expand(shape),
        images @ weights.mT,
        images @ weighted.mT,
        images.square() @ weights.mT,
    )
    return _shifted(Moments(*(part.movedim(0, -1) for part in sums)), prototype_mean, image_mean[:, None])


def fit_color(moments: Moments, unit: float) -> Tensor:
    """Return gain - 1 and bias (..., 2 C) that minimise `distance` plus `penalty`: a regression with two unknowns.

    Args:
        moments: sums over the pixels.
        unit: factor on the priors; 1 if the weights are inverse variances.
    """
    tt, one = moments.tt + unit / GAIN_STD**2, moments.one + unit / BIAS_STD**2
    xt = moments.xt + unit / GAIN_STD**2
    determinant = tt * one - moments.t.square()
    gain = (one * xt - moments.t * moments.x) / determinant
    bias = (tt * moments.x - moments.t * xt) / determinant
    return torch.cat([gain - 1, bias], dim=-1)


def distance(moments: Moments, color: Tensor | None) -> Tensor:
    """Return the weighted squared differences (...) of images and recoloured prototypes, summed over channels."""
    one, t, tt, x, xt, xx = moments
    if color is None:
        return (xx - 2 * xt + tt).sum(-1).clamp_min(0)
    gain, bias = gain_and_bias(color)
    explained = gain * xt + bias * x
    terms = xx - 2 * explained + gain.square() * tt + bias.square() * one + 2 * gain * bias * t
    return terms.sum(-1).clamp_min(0)


def penalty(color: Tensor, unit: float) -> Tensor:
    """Return the negative logarithm (...) of the priors of `color`, doubled, without its constant."""
    change, bias = color.chunk(2, dim=-1)
    return unit * ((change / GAIN_STD).square() + (bias / BIAS_STD).square()).sum(-1)


def gain_and_bias(color: Tensor) -> tuple[Tensor, Tensor]:
    """Split colour parameters (..., 2 C) into gain and bias, each (..., C)."""
    change, bias = color.chunk(2, dim=-1)
    return 1 + change, bias


def recolor(canvases: Tensor, color: Tensor) -> Tensor:
    """Return canvases (P, C', H, W) whose first C channels are recoloured by parameters (P, 2 C)."""
    gain, bias = (part[..., None, None] for part in gain_and_bias(color))
    channels = gain.shape[-3]
    return torch.cat([canvases[:, :channels] * gain + bias, canvases[:, channels:]], dim=1)


def remove_color(images: Tensor, color: Tensor) -> Tensor:
    """Return images (P, C, H, W) in the colours of their prototypes: the inverse of `recolor`."""
    gain, bias = (part[..., None, None] for part in gain_and_bias(color))
    return (images - bias) / bounded_gain(gain)


def bounded_gain(gain: Tensor) -> Tensor:
    """Return `gain` with an absolute value of at least `SMALLEST_GAIN`, by which one may divide."""
    return torch.where(gain < 0, -1.0, 1.0) * gain.abs().clamp_min(SMALLEST_GAIN)


def _shifted(centred: Moments, t_mean: Tensor, x_mean: Tensor) -> Moments:
    """Return the moments of pictures and images in float64, from those of both without their means.

    Nearly flat pictures have moments whose differences matter: float32 sums of plain pixels would lose them.
    """
    one, t, tt, x, xt, xx, p, m = (part.double() for part in (*centred, t_mean, x_mean))
    return Moments(
        one,
        t + p * one,
        tt + 2 * p * t + p.square() * one,
        x + m * one,
        xt + p * x + m * t + p * m * one,
        xx + 2 * m * x + m.square() * one,
    )


def _summed(weights_KBCN: Tensor, powers_BCNJ: Tensor) -> Tensor:
    """Return the sums over pixels (K, B, C, J); the images are not copied for each prototype."""
    k, b, c, n = weights_KBCN.shape
    rows = weights_KBCN.permute(1, 2, 0, 3).reshape(b * c, k, n)
    columns = powers_BCNJ.reshape(b * c, n, powers_BCNJ.shape[-1])
    return torch.bmm(rows, columns).view(b, c, k, columns.shape[-1]).permute(2, 0, 1, 3)
