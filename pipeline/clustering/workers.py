"""Communication between the DDP workers that train a trial together: ranks, sums, ranges and gathered values.

All functions use the default process group (NCCL on GPUs, gloo on CPUs). A single worker has no group; the functions
then return their own values.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

WORKER_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(8 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20)}
"""glibc's limits (mallopt(3)) for CPU workers; other C libraries ignore them.

Blocks of 8 MiB or more are returned to the system when they are freed; smaller ones come from a heap, of which 64 MiB
are kept. By default, glibc raises the first limit automatically; the activations of an encoder then fragment the heap.
"""


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this worker, from 0, and the number of workers."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_workers(values: Tensor) -> Tensor:
    """Replace `values` (of the same shape on every worker) in place by their sum over all workers; return them."""
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(values)
    return values


def range_over_workers(value: int, device: torch.device) -> tuple[int, int]:
    """Return the smallest and the largest `value` among all workers."""
    ends = torch.tensor([-value, value], device=device)
    if rank_and_world_size()[1] > 1:
        dist.all_reduce(ends, dist.ReduceOp.MAX)
    return -int(ends[0]), int(ends[1])


def gather_from_workers(values: Tensor) -> Tensor:
    """Return `values` (of the same shape on every worker) of all workers by rank, in a new first dimension."""
    world_size = rank_and_world_size()[1]
    if world_size == 1:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(world_size)]
    dist.all_gather(parts, values.contiguous())
    return torch.stack(parts)


def broadcast_from_first(values: Tensor) -> None:
    """Replace `values` (of the same shape on every worker) in place by those of the first worker."""
    if rank_and_world_size()[1] > 1:
        dist.broadcast(values, src=0)
