"""The prototypes that training starts from: K-means on thumbnails whose light is standardised, or random images.

Photographs of one view differ in light more than in shape, so plain K-means groups them by light. In a standardised
image, each channel has a fixed mean and deviation.

Shapes: N images, K prototypes, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from pipeline.clustering.data.images import ImageSet, to_float
from pipeline.clustering.kmeans import kmeans_labels
from pipeline.clustering.seeding import generator

THUMBNAIL_PX = 16
"""Maximum side of the thumbnails between which K-means measures distances; tiny images such as digits keep theirs."""
SMALL_PX = 32
"""Side up to which images are not reduced."""
SAMPLE = 20_000
"""Maximum number of images that K-means sees; larger collections are represented by a random sample."""
BATCH = 512
"""Number of images that are read at once."""
STANDARD_MEAN, STANDARD_DEVIATION = 0.5, 0.25
"""Mean and standard deviation of each channel of a standardised image."""
SMALLEST_DEVIATION = 0.02
"""Standard deviation below which a channel counts as flat, and keeps its deviation."""
NEGATIVE_SKEWNESS = -1.0
"""Skewness below which a channel is inverted where colours are fitted: a light ground around a small dark subject."""
TRIES = 3
"""Number of runs of K-means, of which the best one counts."""


def initial_prototypes(images: ImageSet, k: int, seed: int, how: str, any_light: bool) -> Tensor:
    """Return `k` prototypes (K, C, H, W), float, by `seed`.

    ``random`` takes different images of the collection. ``k-means`` takes the means of the clusters of K-means; if
    fewer than `k` images look different, images of the collection complete them.

    Args:
        images: all images.
        k: number of prototypes.
        seed: seed of all random choices.
        how: ``random`` or ``k-means``.
        any_light: whether the method fits the colours of prototypes to images, so that their light does not matter.
    """
    order = torch.randperm(len(images), generator=generator(seed))
    if how == "random":
        return to_float(images[order[:k]])
    sample = order[: max(k, SAMPLE)].sort().values
    labels = _kmeans_labels(images, sample, k, seed, any_light)
    totals = torch.zeros(k, *images.shape)
    for rows in torch.arange(len(sample)).split(BATCH):
        batch = to_float(images[sample[rows]])
        totals.index_add_(0, labels[rows], standardised(batch) if any_light else batch)
    counts = labels.bincount(minlength=k)
    prototypes = totals / counts.clamp_min(1)[:, None, None, None]
    empty = (counts == 0).nonzero()[:, 0]
    prototypes[empty] = to_float(images[order[: len(empty)]])
    return prototypes


def standardised(images_BCHW: Tensor) -> Tensor:
    """Return images whose channels have the standard mean and deviation, and no strongly negative skewness."""
    centred = images_BCHW - images_BCHW.mean((2, 3), keepdim=True)
    deviation = centred.square().mean((2, 3), keepdim=True).sqrt()
    scaled = centred / deviation.clamp_min(SMALLEST_DEVIATION)
    skewness = scaled.pow(3).mean((2, 3), keepdim=True)
    return STANDARD_MEAN + STANDARD_DEVIATION * torch.where(skewness < NEGATIVE_SKEWNESS, -scaled, scaled)


def _kmeans_labels(images: ImageSet, sample: Tensor, k: int, seed: int, any_light: bool) -> Tensor:
    """Return the cluster (N) of each image of `sample` under K-means."""
    height, width = (length if length <= SMALL_PX else THUMBNAIL_PX for length in images.shape[1:])
    thumbnails = []
    for rows in sample.split(BATCH):
        batch = to_float(images[rows])
        thumbnails.append(adaptive_avg_pool2d(standardised(batch) if any_light else batch, (height, width)).flatten(1))
    return kmeans_labels(torch.cat(thumbnails), k, TRIES, seed)
