"""This worker among those that train one trial together: what all of them know, from what each knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.clustering.direct_sums import DirectSums

_direct: DirectSums | None = None
"""Where workers on CPUs are connected: one group of workers per process."""


@contextmanager
def connected(timeout_s: float) -> Iterator[None]:
    """Within it, `summed` is as fast on CPUs as their connections. All workers enter it together, or none.

    Args:
        timeout_s: that a worker waits for another in one sum.
    """
    global _direct  # noqa: PLW0603 (as there is one default process group)
    if place()[1] == 1 or dist.get_backend() != "gloo":
        yield
        return
    with closing(DirectSums(timeout_s)) as _direct:
        try:
            yield
        finally:
            _direct = None


def place() -> tuple[int, int]:
    """Number of this worker from 0, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def summed(values: Tensor) -> Tensor:
    """The sum of `values` over all workers, in place."""
    if place()[1] > 1:
        if _direct is not None:
            _direct.sum(values)
        else:
            dist.all_reduce(values)
    return values


def range_of(value: int, device: torch.device) -> tuple[int, int]:
    """The smallest and the largest `value` that a worker has."""
    ends = torch.tensor([-value, value], device=device)
    if place()[1] > 1:
        dist.all_reduce(ends, dist.ReduceOp.MAX)
    return -int(ends[0]), int(ends[1])
