"""The start of training by alignment: k-medoids over all pairs of images, each pair aligned by exhaustive search.

Prototypes that start from unaligned images are blurred, and predictors that start from the identity find large
displacements only by chance. So a sample of the images is reduced to thumbnails, and each is compared with every other
one under a fixed set of moves, scalings and rotations. Greedy k-medoids on these distances (the BUILD phase of PAM,
Kaufman and Rousseeuw 1990) takes the images that explain most others first: the views that many photos share before the
many different pictures that are noise. Each medoid is chosen from a random part of the images (stochastic greedy,
Mirzasoleiman et al. 2015), so that seeds differ. The result is a clustering, and the alignment of every image to every
medoid, from which `prealignment` teaches the predictors.

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

SAMPLE, LARGEST_SAMPLE = 1500, 2500
"""Number of images that are compared, and its maximum for a large K; smaller collections are compared as a whole."""
SAMPLE_PER_PROTOTYPE = 4
"""Number of compared images for each prototype, where this is more than `SAMPLE`."""
SAMPLE_BYTES = 2**30
"""Maximum size of the sample in bytes. The sample has an image for each prototype, whatever its size."""
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
FLAT = 0.02
"""Standard deviation of the values of a channel below which it is flat; flat images look the same in any alignment."""
SKIPPED = 0.001
"""Expected part by which the choice from random candidates may explain less than the choice from all of them."""
CHUNK_BYTES = 2**26
"""Approximate size of the largest values that are in memory at one time."""


@dataclass(frozen=True)
class AlignedStart:
    """Clusters of sampled images, and their alignments to all clusters."""

    images_SCHW: Tensor
    """uint8: the sampled images."""
    cluster_S: Tensor
    """int64: cluster of each sampled image."""
    alignment_SK: Tensor
    """int32: index in `alignments` of the best alignment of each image to each medoid."""
    medoid_K: Tensor
    """int64: index in the sample of the medoid of each cluster."""

    def prototypes(self, any_light: bool) -> Tensor:
        """Return the mean (K, C, H, W) of the aligned images of each cluster; of standardised ones for `any_light`."""
        k, shape = len(self.medoid_K), self.images_SCHW.shape[1:]
        totals, counts = torch.zeros(k, *shape), torch.zeros(k)
        grids = alignments()
        for rows in torch.arange(len(self.cluster_S)).split(max(1, CHUNK_BYTES // (4 * math.prod(shape)))):
            cluster = self.cluster_S[rows]
            theta = grids[self.alignment_SK[rows, cluster].long()]
            aligned = sample_at(to_float(self.images_SCHW[rows]), affine_grid(theta, [len(rows), *shape], False))
            totals.index_add_(0, cluster, standardised(aligned) if any_light else aligned)
            counts.index_add_(0, cluster, torch.ones(len(rows)))
        empty = (counts == 0).nonzero()[:, 0]  # medoids that look like another one
        totals[empty] = to_float(self.images_SCHW[self.medoid_K[empty]])
        return totals / counts.clamp_min(1)[:, None, None, None]


def sample_size(n: int, shape: Sequence[int], k: int) -> int:
    """Return how many of `n` images of one `shape` (C, H, W) are compared."""
    affordable = SAMPLE_BYTES // math.prod(shape)
    wanted = min(max(SAMPLE, SAMPLE_PER_PROTOTYPE * k), LARGEST_SAMPLE)
    return min(n, max(k, min(affordable, wanted)))


def aligned_start(images: ImageSet, k: int, seed: int, any_light: bool, device: torch.device) -> AlignedStart:
    """Return `k` clusters of a sample of `images`.

    Only the first worker compares images; all workers call this together, and get the same result.

    Args:
        images: all images; at least `k`.
        k: number of clusters.
        seed: seed of the choice of the sample and of medoids.
        any_light: whether the light of images does not matter, because colours are fitted.
        device: device that compares the thumbnails.
    """
    size = sample_size(len(images), images.shape, k)
    sampled = torch.randperm(len(images), generator=generator(seed))[:size].sort().values
    chosen = images[sampled]
    medoid_K = torch.zeros(k, dtype=torch.int64, device=device)
    cluster_S = torch.zeros(len(sampled), dtype=torch.int64, device=device)
    alignment_SK = torch.zeros(len(sampled), k, dtype=torch.int32, device=device)
    if rank_and_world_size()[0] == 0:
        side = min(THUMBNAIL_PX, *images.shape[1:])
        thumbnails = torch.cat([adaptive_avg_pool2d(to_float(part), side) for part in chosen.split(64)])
        distance_SS, alignment_SS = _distances(thumbnails.to(device), any_light)
        medoid_K = k_medoids(distance_SS, k, seed)
        cluster_S, alignment_SK = distance_SS[:, medoid_K].argmin(1), alignment_SS[:, medoid_K].int()
    for found in (medoid_K, cluster_S, alignment_SK):
        broadcast_from_first(found)
    return AlignedStart(chosen, cluster_S.cpu(), alignment_SK.cpu(), medoid_K.cpu())


def alignments() -> Tensor:
    """Return candidate alignments (R, 2, 3): each maps (x, y, 1) in a prototype's frame to a position in an image.

    The first one is the identity.
    """
    candidates = [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]
    for scale, degrees, dx, dy in itertools.product(SCALES, ROTATIONS_DEG, SHIFTS, SHIFTS):
        cos, sin = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
        if (scale, degrees, dx, dy) != (1, 0, 0, 0):
            candidates.append([[cos, -sin, dx], [sin, cos, dy]])
    return torch.tensor(candidates)


def k_medoids(distance_SS: Tensor, k: int, seed: int) -> Tensor:
    """Return the indices (K,) of medoids, each of which reduces the sum of the distances to the nearest medoid most.

    Each is the best one of random candidates, which are so many that their best one is expected to be nearly as good as
    the best one of all.

    Args:
        distance_SS: distance of each image (row) to each image as a medoid (column), >= 0.
        k: number of medoids, all different.
        seed: seed of the candidates.
    """
    n = len(distance_SS)
    nearest_S = distance_SS.max(1).values
    left = torch.arange(n)
    chosen: list[int] = []
    for number in range(k):
        candidates = left[torch.randperm(len(left), generator=generator(seed, number))][: candidates_of(n, k)]
        gain = (nearest_S[:, None] - distance_SS[:, candidates]).clamp_min_(0).sum(0)
        chosen.append(int(candidates[gain.argmax().cpu()]))
        left = left[left != chosen[-1]]
        nearest_S = torch.minimum(nearest_S, distance_SS[:, chosen[-1]])
    return torch.tensor(chosen, device=distance_SS.device)


def candidates_of(n: int, k: int) -> int:
    """Return the number of candidates for each of `k` medoids of `n` images."""
    return math.ceil(n / k * -math.log(SKIPPED))


def _distances(thumbnails: Tensor, any_light: bool) -> tuple[Tensor, Tensor]:
    """Return the squared distance (S, S) of each aligned image (row) to each other one, and its best alignment."""
    candidates = alignments().to(thumbnails)
    still_SD = _features(thumbnails, candidates[:1], any_light)[:, 0]
    r, (s, d) = len(candidates), still_SD.shape
    distance_SS, alignment_SS = thumbnails.new_empty(s, s), torch.empty(s, s, dtype=torch.int16, device=still_SD.device)
    for rows in torch.arange(s).split(max(1, CHUNK_BYTES // (4 * r * (d + s)))):
        aligned = _features(thumbnails[rows], candidates, any_light)
        squared = (aligned.flatten(0, 1) @ still_SD.T).view(len(rows), r, s)
        squared.mul_(-2).add_(aligned.square().sum(2)[:, :, None]).add_(still_SD.square().sum(1))
        nearest = squared.min(1)
        distance_SS[rows], alignment_SS[rows] = nearest.values.clamp_(0), nearest.indices.to(torch.int16)
    flat = thumbnails.std((2, 3)).amax(1) < FLAT
    alignment_SS[flat] = alignment_SS[:, flat] = 0
    if any_light:
        distance_SS.clamp_(max=UNLIKE)
        distance_SS[flat] = distance_SS[:, flat] = UNLIKE
        distance_SS[flat.nonzero(), flat.nonzero()[:, 0]] = 0
    return distance_SS, alignment_SS


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
