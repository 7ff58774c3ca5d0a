"""Reassignment of empty clusters (DTI paper, section 4.2): tiny clusters restart as copies of the largest one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from pipeline.clustering.model.dti import DTI

NOISE_STD = 1e-4
"""Standard deviation of the noise that distinguishes a copy from its donor."""


@torch.no_grad()
def reassign_tiny(
    method: DTI, optimizer: Optimizer, shares_K: Tensor, below: float, generator: torch.Generator
) -> list[int]:
    """Restart every prototype whose share is under `below` / K from the prototype with the largest share.

    All parameters of the prototype are copied (pixels, scale, mixing logit, predictors), with the optimiser's moments.
    Noise is added to the pixels of the copies and of the donor. Workers stay identical if they have the same model,
    the same global shares and generators in the same state.

    Args:
        method: model, changed in place.
        optimizer: optimiser of the model, changed in place.
        shares_K: fraction of the images that each prototype explained since the last check, over all workers; the
            fractions sum to 1.
        below: threshold as a fraction of an equal share; 0.2 is the paper's 20 %.
        generator: generator of the noise.

    Returns:
        Indices of the restarted prototypes.
    """
    tiny = (shares_K < below / method.k).nonzero()[:, 0]
    donor = int(shares_K.argmax())
    tiny = tiny[tiny != donor]
    if not len(tiny):
        return []
    for parameter in method.prototype_parameters():
        moments = [m for m in optimizer.state.get(parameter, {}).values() if m.shape == parameter.shape]
        for tensor in (parameter, *moments):
            tensor[tiny] = tensor[donor].clone()
    touched = torch.cat([tiny, tiny.new_tensor([donor])])
    noise = torch.randn(len(touched), *method.image_shape, generator=generator) * NOISE_STD
    method.prototypes[touched] += noise.to(method.prototypes)
    return [int(index) for index in tiny]
