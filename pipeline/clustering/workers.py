"""This worker among those that train one trial together: what all of them know, from what each knows."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def place() -> tuple[int, int]:
    """Number of this worker from 0, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def summed(values: Tensor) -> Tensor:
    """The sum of `values` over all workers, in place."""
    if place()[1] > 1:
        dist.all_reduce(values)
    return values


def range_of(value: int, device: torch.device) -> tuple[int, int]:
    """The smallest and the largest `value` that a worker has."""
    ends = torch.tensor([-value, value], device=device)
    if place()[1] > 1:
        dist.all_reduce(ends, dist.ReduceOp.MAX)
    return -int(ends[0]), int(ends[1])
