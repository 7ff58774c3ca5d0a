"""Split and merge: a prototype that is hardly needed restarts as one half of a cluster that is worth splitting.

The DTI paper restarts empty clusters only (section 4.2, "Reassignment of empty clusters"). Here two numbers in the unit
of the loss are compared, both summed over the images of a window:

- the *cost* of removing a prototype: how much worse the runner-ups of its images explain them. It is 0 for an empty
  cluster, and small for one of two copies, or for a prototype that a transformed neighbour can replace;
- the *gain* of splitting a cluster: its images are aligned back to the prototype, what the prototype leaves unexplained
  is divided by 2-means, and each half gets a prototype of its own, which explains the mean of its half.

While the gain, times a factor, exceeds the cost, the prototype with the lowest cost restarts as one half of the cluster
with the largest gain. With alignments as they are, the loss falls by about the gain minus the cost. Both are
pessimistic: afterwards, the runner-ups adapt to the images that they have taken over, and the halves to theirs. Hence
the factor may exceed 1, and no restart is undone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torch.optim import Optimizer

from pipeline.clustering.data.images import ImageSet, to_float
from pipeline.clustering.kmeans import kmeans_labels
from pipeline.clustering.model.color import bounded_gain, gain_and_bias, recolor
from pipeline.clustering.model.dti import DTI
from pipeline.clustering.model.method import Assignment
from pipeline.clustering.workers import broadcast_from_first, gather_from_workers, rank_and_world_size

SPLIT_IMAGES = 64
"""Maximum number of images of a cluster from which its split is computed."""
SMALLEST_SPLIT = 4
"""Minimum number of images of a cluster that is split."""
SPLIT_PX = 32
"""Maximum side in px of the reduced residuals between which 2-means measures distances."""
RESTARTED_AT_ONCE = 8
"""One of so many prototypes restarts at a time, but at least one."""


@dataclass(frozen=True)
class Explained:
    """The images of a window in the order of training, and how they were explained; N of them, of all workers."""

    image_N: Tensor
    """int64: indices of the images."""
    cluster_N: Tensor
    margin_N: Tensor
    parameters: dict[str, Tensor]
    """Transformation parameters (N, p) of each predicted module."""

    @classmethod
    def gather(cls, image_B: list[Tensor], assigned: list[Assignment]) -> Explained:
        """Gather the batches of a window from all workers, given those of this worker."""

        def gathered(batches: list[Tensor]) -> Tensor:
            values = gather_from_workers(torch.stack(batches))  # workers, batches, images, ...
            return values.transpose(0, 1).flatten(0, 2)

        names = [name for name in assigned[0].parameters if name != "color"]
        device = assigned[0].cluster_B.device
        return cls(
            gathered([image.to(device) for image in image_B]),
            gathered([a.cluster_B for a in assigned]),
            gathered([a.margin_B for a in assigned]),
            {name: gathered([a.parameters[name] for a in assigned]) for name in names},
        )

    def removal_costs(self, k: int) -> Tensor:
        """Return for each of `k` prototypes by how much its images would be explained worse without it (K,)."""
        # A prototype that screening ruled out has a score of -inf, so a margin to it may be infinite.
        margin_N = self.margin_N.double().nan_to_num(posinf=torch.finfo(torch.float32).max)
        return torch.zeros(k, dtype=torch.float64, device=margin_N.device).index_add_(0, self.cluster_N, margin_N)

    def latest_of(self, cluster: int) -> Tensor:
        """Return the rows of the latest different images of `cluster`, at most `SPLIT_IMAGES`."""
        rows = (self.cluster_N == cluster).nonzero()[:, 0].flip(0)
        images, first = self.image_N[rows].unique(return_inverse=True)
        position = torch.arange(len(rows), device=rows.device)
        latest = torch.full_like(images, len(rows)).scatter_reduce_(0, first, position, "amin")
        return rows[latest.sort().values[:SPLIT_IMAGES]]


@dataclass(frozen=True)
class Split:
    """The halves of a cluster."""

    gain: float
    """By how much both halves together are explained better, summed over all images of the cluster in a window."""
    halves_2CHW: Tensor
    """Prototypes of the halves."""


@torch.no_grad()
def split_and_merge(
    method: DTI, optimizer: Optimizer, explained: Explained, images: ImageSet, below: float
) -> list[tuple[int, int]]:
    """Restart prototypes while the gain of a split, times `below`, exceeds the cost of the removal.

    All parameters of the prototype that is split are copied (pixels, scales, predictors), with the optimiser's moments;
    then both get the pixels of their halves. The first worker decides for all, so that workers stay identical.

    Args:
        method: model, changed in place.
        optimizer: optimiser of the model, changed in place.
        explained: images of the last window.
        images: all images.
        below: factor on gains; with 1, the loss falls even before anything adapts; 0 never restarts a prototype.

    Returns:
        The index of each restarted prototype, with the index of the cluster that was split.
    """
    restarts = torch.full((max(1, method.k // RESTARTED_AT_ONCE), 2), -1, device=method.prototypes.device)
    halves = method.prototypes.new_zeros(len(restarts), 2, *method.image_shape)
    if rank_and_world_size()[0] == 0:
        _choose(method, explained, images, below, restarts, halves)
    broadcast_from_first(restarts)
    broadcast_from_first(halves)
    chosen = [(removed, split) for removed, split in restarts.tolist() if removed >= 0]
    for (removed, split), pair in zip(chosen, halves, strict=False):
        for parameter in method.prototype_parameters():
            moments = [m for m in optimizer.state.get(parameter, {}).values() if m.shape == parameter.shape]
            for tensor in (parameter, *moments):
                tensor[removed] = tensor[split]
        method.prototypes[split], method.prototypes[removed] = pair[0], pair[1]
    if chosen:  # after a warm start, mixing proportions differ
        shares_K = method.shares_K()
        for both in chosen:
            shares_K[list(both)] = shares_K[list(both)].mean()
        method.set_shares(shares_K)
    return chosen


def _choose(
    method: DTI, explained: Explained, images: ImageSet, below: float, restarts_R2: Tensor, halves_R2CHW: Tensor
) -> None:
    """Write the chosen restarts, and the new prototypes of each, to the last two arguments."""
    cost_K = explained.removal_costs(method.k)
    splits = {cluster: split_of(method, explained, images, cluster) for cluster in range(method.k)}
    gain_K = torch.tensor([split.gain if split else 0.0 for split in splits.values()], dtype=torch.float64)
    cost_K = cost_K.cpu()
    for index in range(len(restarts_R2)):
        removed = int(cost_K.argmin())
        gains = gain_K.clone()
        gains[removed] = 0
        split = int(gains.argmax())
        best = splits[split]
        if best is None or cost_K[removed] >= below * gains[split]:
            return
        restarts_R2[index, 0], restarts_R2[index, 1] = removed, split
        halves_R2CHW[index] = best.halves_2CHW
        for used in (removed, split):
            cost_K[used], gain_K[used] = torch.inf, 0


@torch.no_grad()
def split_of(method: DTI, explained: Explained, images: ImageSet, cluster: int) -> Split | None:
    """Return the split of `cluster` by 2-means; None if it has too few images, or if all of them look alike."""
    rows = explained.latest_of(cluster)
    if len(rows) < SMALLEST_SPLIT:
        return None
    residual, gain = _residuals(method, images, explained, rows, cluster)
    precision = method.precision(method.canvas()[cluster])
    weight = residual.new_tensor(method.constant_precision) if precision is None else precision
    if method.pixel_weights_HW is not None:
        weight = weight * method.pixel_weights_HW
    height, width = (min(SPLIT_PX, length) for length in method.image_shape[1:])
    reduced = adaptive_avg_pool2d(residual * weight.sqrt(), (height, width)).flatten(1).cpu()
    if (reduced == reduced[0]).all():
        return None
    half = kmeans_labels(reduced, 2, tries=2, seed=0).to(residual.device)
    means, steps = [], []
    for side_rows in (half == 0, half == 1):
        means.append(residual[side_rows].mean(0))
        amount = (residual * gain[..., None, None])[side_rows].mean(0)
        steps.append(amount / gain[side_rows].square().mean(0)[:, None, None])
    n_half = [int((half == 0).sum()), int((half == 1).sum())]
    energies = [n * float((weight * mean.square()).sum()) for n, mean in zip(n_half, means, strict=True)]
    together = len(rows) * float((weight * residual.mean(0).square()).sum())
    all_images = int((explained.cluster_N == cluster).sum())
    return Split(
        gain=0.5 * (sum(energies) - together) * all_images / len(rows),
        halves_2CHW=torch.stack([method.prototypes[cluster] + step for step in steps]),
    )


def _residuals(
    method: DTI, images: ImageSet, explained: Explained, rows: Tensor, cluster: int
) -> tuple[Tensor, Tensor]:
    """Return what `cluster` leaves unexplained of its images (n, C, H, W), in its frame, and the gains (n, C).

    Where a gain is negative, the sign of the residual is changed, and the gain returned is its absolute value.
    """
    batch = to_float(images[explained.image_N[rows].cpu()].to(rows.device)).to(method.prototypes)
    parameters = {name: beta[rows] for name, beta in explained.parameters.items()}
    canvases = method.sequence.transform(method.canvas()[cluster].expand(len(rows), -1, -1, -1), parameters)
    gain = batch.new_ones(batch.shape[:2])
    if method.fits_color:
        color = method.fitted_color(canvases, batch)
        canvases = recolor(canvases, color)
        gain = bounded_gain(gain_and_bias(color)[0])
    residual = (batch - canvases[:, : batch.shape[1]]) * gain.sign()[..., None, None]
    return method.sequence.invert(residual, parameters), gain.abs()
