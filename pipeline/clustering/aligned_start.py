"""The start of training by alignment: k-medoids over all pairs of images, each pair aligned by exhaustive search.

Prototypes that start from unaligned images are blurred, and predictors that start from the identity find large
displacements only by chance. So a sample of the images is reduced to thumbnails, and each is compared with every other
one under a fixed set of moves, scalings and rotations. Greedy k-medoids on these distances (the BUILD phase of PAM,
Kaufman and Rousseeuw 1990) takes the images that explain most others first: the views that many photos share before the
many different pictures that are noise. What it finds is a clustering, and the alignment of every image to every medoid,
from which `prealignment` teaches the predictors.

Where colours are fitted, thumbnails are compared in standardised light without their broad gradients of brightness,
which any two photos may share.

Shapes: S sampled images, K medoids, R candidate alignments, C channels, H x W pixels, D values of a thumbnail.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, affine_grid, normalize

from pipeline.clustering.data.images import ImageSet, to_float
from pipeline.clustering.initial_prototypes import STANDARD_MEAN, standardised
from pipeline.clustering.model.transforms import sample as sample_at
from pipeline.clustering.seeding import generator
from pipeline.clustering.workers import broadcast_from_first, rank_and_world_size

SAMPLE = 1500
"""Number of images that are compared; collections with fewer images are compared as a whole."""
SAMPLE_PER_PROTOTYPE = 4
"""Minimum number of compared images for each prototype."""
SAMPLE_BYTES = 2**30
"""Maximum size of the sample in bytes, as long as it has one image for each prototype."""
THUMBNAIL_PX = 16
"""Maximum side of a thumbnail."""
SCALES = (0.8, 0.9, 1.0, 1.12, 1.25)
ROTATIONS_DEG = (-8.0, 0.0, 8.0)
SHIFTS = (-0.25, -0.125, 0.0, 0.125, 0.25)
"""Shifts along each axis, in halves of the side of an image."""
BROAD = 1 / 4
"""Standard deviation of the blur that shows the broad gradients of a thumbnail, in sides of the thumbnail."""
UNLIKE = 2.0
"""Squared distance between normalised thumbnails without correlation; images that are further apart are as unlike."""
CHUNK_BYTES = 2**26
"""Size of the aligned thumbnails that are in memory at one time."""


@dataclass(frozen=True)
class AlignedStart:
    """Clusters of sampled images, and their alignments to all clusters."""

    images_SCHW: Tensor
    """uint8: the sampled images."""
    cluster_S: Tensor
    """int64: cluster of each sampled image."""
    alignment_SK: Tensor
    """int64: index in `alignments` of the best alignment of each image to each medoid."""
    medoid_K: Tensor
    """int64: index in the sample of the medoid of each cluster."""

    def prototypes(self, any_light: bool) -> Tensor:
        """Return the mean (K, C, H, W) of the aligned images of each cluster; of standardised ones for `any_light`."""
        k, shape = len(self.medoid_K), self.images_SCHW.shape[1:]
        totals, counts = torch.zeros(k, *shape), torch.zeros(k)
        grids = alignments()
        for rows in torch.arange(len(self.cluster_S)).split(64):
            cluster = self.cluster_S[rows]
            theta = grids[self.alignment_SK[rows, cluster]]
            aligned = sample_at(to_float(self.images_SCHW[rows]), affine_grid(theta, [len(rows), *shape], False))
            totals.index_add_(0, cluster, standardised(aligned) if any_light else aligned)
            counts.index_add_(0, cluster, torch.ones(len(rows)))
        empty = (counts == 0).nonzero()[:, 0]  # medoids that look like another one
        totals[empty] = to_float(self.images_SCHW[self.medoid_K[empty]])
        return totals / counts.clamp_min(1)[:, None, None, None]


def sample_size(n: int, shape: Sequence[int], k: int) -> int:
    """Return how many of `n` images of one `shape` (C, H, W) are compared."""
    affordable = SAMPLE_BYTES // math.prod(shape)
    return min(n, max(k, min(affordable, max(SAMPLE, SAMPLE_PER_PROTOTYPE * k))))


def aligned_start(images: ImageSet, k: int, seed: int, any_light: bool, device: torch.device) -> AlignedStart:
    """Return `k` clusters of a sample of `images`.

    Only the first worker compares images; all workers call this together, and get the same result.

    Args:
        images: all images; at least `k`.
        k: number of clusters.
        seed: seed of the choice of the sample.
        any_light: whether the light of images does not matter, because colours are fitted.
        device: device that compares the thumbnails.
    """
    sampled = (
        torch.randperm(len(images), generator=generator(seed))[: sample_size(len(images), images.shape, k)]
        .sort()
        .values
    )
    chosen = images[sampled]
    medoid_K = torch.zeros(k, dtype=torch.int64, device=device)
    cluster_S = torch.zeros(len(sampled), dtype=torch.int64, device=device)
    alignment_SK = torch.zeros(len(sampled), k, dtype=torch.int64, device=device)
    if rank_and_world_size()[0] == 0:
        side = min(THUMBNAIL_PX, *images.shape[1:])
        thumbnails = torch.cat([adaptive_avg_pool2d(to_float(part), side) for part in chosen.split(64)])
        distance_SS, alignment_SS = _distances(thumbnails.to(device), any_light)
        medoid_K = k_medoids(distance_SS, k)
        cluster_S, alignment_SK = distance_SS[:, medoid_K].argmin(1), alignment_SS[:, medoid_K].contiguous()
    for found in (medoid_K, cluster_S, alignment_SK):
        broadcast_from_first(found)
    return AlignedStart(chosen, cluster_S.cpu(), alignment_SK.cpu(), medoid_K.cpu())


def alignments() -> Tensor:
    """Return candidate alignments (R, 2, 3): each maps (x, y, 1) in a prototype's frame to a position in an image."""
    candidates = []
    for scale, degrees, dx, dy in itertools.product(SCALES, ROTATIONS_DEG, SHIFTS, SHIFTS):
        cos, sin = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
        candidates.append([[cos, -sin, dx], [sin, cos, dy]])
    return torch.tensor(candidates)


def k_medoids(distance_SS: Tensor, k: int) -> Tensor:
    """Return the indices (K,) of medoids: each in turn reduces most the sum of the distances to the nearest medoid.

    Args:
        distance_SS: distance of each image (row) to each candidate (column), >= 0.
        k: number of medoids, all different.
    """
    nearest_S = distance_SS.max(1).values
    chosen: list[int] = []
    for _ in range(k):
        gain_S = torch.zeros_like(nearest_S)
        for rows in torch.arange(len(nearest_S), device=nearest_S.device).split(1024):
            gain_S += (nearest_S[rows, None] - distance_SS[rows]).clamp_min_(0).sum(0)
        gain_S[chosen] = -1
        chosen.append(int(gain_S.argmax()))
        nearest_S = torch.minimum(nearest_S, distance_SS[:, chosen[-1]])
    return torch.tensor(chosen, device=distance_SS.device)


def _distances(thumbnails: Tensor, any_light: bool) -> tuple[Tensor, Tensor]:
    """Return the squared distance (S, S) of each aligned image (row) to each other one, and its best alignment."""
    candidates = alignments().to(thumbnails)
    identity = torch.eye(2, 3).to(thumbnails)[None]
    still_SD = _features(thumbnails, identity, any_light)[:, 0]
    step = max(1, CHUNK_BYTES // (4 * still_SD.shape[1] * len(candidates)))
    distances, best = [], []
    for part in thumbnails.split(step):
        aligned = _features(part, candidates, any_light)
        products = (aligned.flatten(0, 1) @ still_SD.T).view(len(part), len(candidates), -1)
        squared = aligned.square().sum(2)[:, :, None] + still_SD.square().sum(1) - 2 * products
        nearest = squared.min(1)
        distances.append(nearest.values.clamp(0, UNLIKE if any_light else None))
        best.append(nearest.indices)
    return torch.cat(distances), torch.cat(best)


def _features(thumbnails: Tensor, candidates: Tensor, any_light: bool) -> Tensor:
    """Return the values (n, R, D) by which thumbnails (n, C, side, side), aligned by each candidate, are compared."""
    n, r, side = len(thumbnails), len(candidates), thumbnails.shape[-1]
    grids = affine_grid(candidates, [r, 1, side, side], align_corners=False)
    # All alignments of an image are stacked vertically in one tall picture, so that the image is not copied.
    tall = sample_at(thumbnails, grids.flatten(0, 1).expand(n, -1, -1, -1))
    pictures = tall.unflatten(2, (r, side)).transpose(1, 2).flatten(0, 1)
    if not any_light:
        return pictures.view(n, r, -1)
    pictures = standardised(pictures) - STANDARD_MEAN
    blur = _blur(side).to(pictures)
    return normalize((pictures - blur @ pictures @ blur.T).flatten(1), dim=1).view(n, r, -1)


def _blur(side: int) -> Tensor:
    """Return the matrix (side, side) of a Gaussian blur along one axis, which continues the border."""
    position = torch.arange(-3 * side, 4 * side)
    weight = torch.exp(-0.5 * ((torch.arange(side)[:, None] - position) / (BROAD * side)).square())
    weight = weight / weight.sum(1, keepdim=True)
    return torch.zeros(side, side).index_add_(1, position.clamp(0, side - 1), weight)
