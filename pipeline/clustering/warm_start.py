"""Warm start: a new model takes over encoder, prototypes and predictors of an earlier run of the collection."""

from __future__ import annotations

import torch

from pipeline.clustering.checkpoint import load_method
from pipeline.clustering.data.images import ImageSet, to_float
from pipeline.clustering.model.dti import DTI
from pipeline.clustering.seeding import generator
from pipeline.clustering.workers import rank_and_world_size, sum_over_workers
from pipeline.storage import Storage

WORST_FRACTION = 0.1
"""Fraction of the images, those with the highest losses, from which new prototypes are drawn."""
BATCH = 256
"""Number of images that are assigned at once."""


@torch.no_grad()
def take_over(method: DTI, storage: Storage, key: str, images: ImageSet, seed: int) -> None:
    """Copy encoder, prototypes and predictors of the stored model into `method`.

    If `method` has fewer prototypes, those with the smallest shares are left out. If it has more, each additional
    prototype starts, untransformed, from one of the images that the stored model explains worst, with the predictors of
    the prototype of this image.

    Args:
        method: model of the same kind as the stored one, on any device; changed in place.
        storage: workspace.
        key: key of the checkpoint of the stored model.
        images: all images; if new prototypes are needed, the workers share a pass over all images.
        seed: seed of the choice of images.
    """
    earlier = load_method(storage, key, method.prototypes.device)
    kept = earlier.shares_K().cpu().argsort(descending=True, stable=True)[: method.k]
    of_prototypes = {id(parameter) for parameter in method.prototype_parameters()}
    earlier_state = earlier.state_dict()
    for name, value in method.state_dict(keep_vars=True).items():
        if id(value) in of_prototypes:
            value[: len(kept)] = earlier_state[name][kept].to(value)
        elif name != "log_mixing_K":
            value.copy_(earlier_state[name])
    shares = earlier.shares_K()[kept]
    shares = torch.cat([shares, shares.mean().expand(method.k - len(kept))])
    method.set_shares(shares / shares.sum())
    if len(kept) == method.k:
        return
    new = torch.arange(len(kept), method.k)
    chosen, cluster = _worst_explained(earlier, images, len(new), seed)
    donor = torch.tensor([kept.tolist().index(int(c)) for c in cluster])
    for parameter in method.prototype_parameters():
        parameter[new] = parameter[donor]
    method.prototypes[new] = to_float(images[chosen]).to(method.prototypes)
    for heads in method.heads.values():
        for last in (heads.weights[-1], heads.biases[-1]):  # type: ignore[index]
            last[new] = 0


def _worst_explained(earlier: DTI, images: ImageSet, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw `n` of the images that `earlier` explains worst; return their indices and the prototype of each."""
    device = earlier.prototypes.device
    rank, world_size = rank_and_world_size()
    loss = torch.zeros(len(images), dtype=torch.float64, device=device)
    cluster = torch.zeros(len(images), dtype=torch.int64, device=device)
    # Workers take whole batches, so that results are rounded alike for any number of workers.
    for batch in torch.arange(len(images)).split(BATCH)[rank::world_size]:
        assigned = earlier.assign(to_float(images[batch].to(device)))
        loss[batch], cluster[batch] = assigned.loss_B.double(), assigned.cluster_B
    loss, cluster = sum_over_workers(loss).cpu(), sum_over_workers(cluster).cpu()
    n_worst = max(n, int(WORST_FRACTION * len(loss)))
    worst = loss.argsort(descending=True, stable=True)[:n_worst]
    chosen = worst[torch.randperm(n_worst, generator=generator(seed))[:n]]
    return chosen, cluster[chosen]
