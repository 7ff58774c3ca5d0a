"""Empty-cluster reassignment (DTI paper, section 4.2): tiny clusters restart as copies of the largest one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from pipeline.clustering.model.dti import DTI

NOISE_STD = 1e-4
"""Standard deviation of the noise that tells a copy from its donor."""


@torch.no_grad()
def reassign_tiny(
    method: DTI, optimizer: Optimizer, shares_K: Tensor, below: float, generator: torch.Generator
) -> list[int]:
    """Restart every prototype whose share is under `below` / K from the prototype with the largest share.

    Everything that a prototype has is copied: pixels, scale, mixing logit, predictors, and the optimiser's moments of
    each. Noise is added to the pixels of the copies and of the donor. Workers that hold the same model, the
    same global shares and generators in the same state stay identical.

    Args:
        shares_K: part of the images that each prototype explained since the last check, over all workers; sums to 1.
        below: part of an equal share; the paper's 20 % is 0.2.
        generator: of the noise.

    Returns:
        The restarted prototypes.
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
