"""Prealignment: before training, the predictors learn the alignments that `aligned_start` has found by search.

It is a regression of positions in the prototypes, on batches of the sampled images. It takes no warps and no
likelihoods, so an iteration costs little more than the encoder. Gradient descent on the likelihood, which moves a
prototype by fractions of a pixel, would need far longer for the same displacements, and often ends at a local optimum.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.clustering.aligned_start import AlignedStart, alignments
from pipeline.clustering.data.images import to_float
from pipeline.clustering.model.dti import DTI
from pipeline.clustering.seeding import generator
from pipeline.clustering.workers import rank_and_world_size, sum_over_workers
from pipeline.errors import ClusteringError

ITERATIONS = 200
BATCH = 64
"""Number of images of a batch, over all workers."""
LEARNING_RATE = 1e-3
POINTS_PER_SIDE = 4
"""Positions are compared on a grid with about so many points along each side."""


def prealign(method: DTI, module: str, start: AlignedStart, seed: int) -> float:
    """Train encoder and predictors of `module` on the alignments of `start`; return the loss of the last batch.

    The loss is the mean squared distance of the predicted positions, in halves of a side. The clusters that an image
    does not belong to have together the same weight as its own. Workers share each batch.

    Args:
        method: model, changed in place; `module` must be active, and all others predict the identity.
        module: name of a spatial module.
        start: clusters and alignments, the same on all workers.
        seed: seed of the batches.

    Raises ClusteringError if the loss is not finite.
    """
    rank, world_size = rank_and_world_size()
    device, k = method.prototypes.device, method.k
    parameters = list(method.network_parameters())
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    stride = max(1, min(method.image_shape[1:]) // POINTS_PER_SIDE)
    identity = torch.zeros(1, method.sequence.sizes[module], device=device)
    points = method.sequence.points({module: identity}, stride).flatten(0, 2)
    targets_RN2 = positions_in_prototype(points)
    n = len(start.cluster_S)
    copies = -(-2 * world_size // n)  # batch normalisation needs two images, and every worker one
    size = min(BATCH, n * copies) // world_size * world_size
    loss = torch.zeros((), device=device)
    for iteration in range(ITERATIONS):
        rows = torch.randperm(n, generator=generator(seed, iteration)).repeat(copies)[:size][rank::world_size]
        cluster_B, images = start.cluster_S[rows].to(device), to_float(start.images_SCHW[rows].to(device))
        weight_BK = torch.full((len(rows), k), 1 / max(1, k - 1), device=device)
        weight_BK.scatter_(1, cluster_B[:, None], 1.0)
        predicted = method.predict(images)[module]
        moved = method.sequence.points({module: predicted}, stride).flatten(2, 3)
        target = targets_RN2[start.alignment_SK[rows].long().to(device)]
        squared_BK = (moved - target).square().sum(-1).mean(-1)
        loss = (weight_BK * squared_BK).sum() / size
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for parameter in parameters:
            if parameter.grad is not None:
                sum_over_workers(parameter.grad)
        optimizer.step()
    final = float(sum_over_workers(loss.detach()))
    if not math.isfinite(final):
        raise ClusteringError(
            "the alignments of the start could not be learned: a number is not finite; give "
            "--set clustering.initialization=k-means"
        )
    return final


def positions_in_prototype(points_N2: Tensor) -> Tensor:
    """Return where each candidate alignment finds positions of an image in the frame of the prototype (R, N, 2)."""
    to_image = alignments().to(points_N2)
    rotation, shift = to_image[:, :, :2], to_image[:, :, 2]
    return torch.linalg.solve(rotation[:, None], (points_N2 - shift[:, None])[..., None])[..., 0]
