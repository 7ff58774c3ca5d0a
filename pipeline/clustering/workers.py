"""This worker among those that train one trial together: what all of them know, from what each knows."""

# Annotations are evaluated here: DDP looks at those of what exchanges its gradients.
from collections.abc import Iterator
from contextlib import closing, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.clustering.direct_sums import DirectSums
from pipeline.clustering.shared_sums import SharedSums, shared_sums

_direct: DirectSums | None = None
"""Where workers on CPUs are connected: one group of workers per process."""
_shared: SharedSums | None = None
"""Where they are on one machine, too."""


@contextmanager
def connected(timeout_s: float) -> Iterator[None]:
    """Within it, workers on CPUs add as fast as their connections, and their memory on one machine, are.

    All workers enter it together, or none.

    Args:
        timeout_s: that a worker waits for another in one sum.
    """
    global _direct, _shared  # noqa: PLW0603 (as there is one default process group)
    if place()[1] == 1 or dist.get_backend() != "gloo":
        yield
        return
    with closing(DirectSums(timeout_s)) as _direct:
        try:
            _shared = shared_sums(_direct)
            yield
        finally:
            _direct = _shared = None


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


def exchange_gradients(parallel: DistributedDataParallel) -> None:
    """Have `parallel` add its gradients in the order of workers, where they share memory; or else by their group."""
    if _shared is not None:
        parallel.register_comm_hook(_shared, _averaged)


def _averaged(
    sums: SharedSums,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    gradients = bucket.buffer()
    sums.sum(gradients.div_(place()[1]))
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(gradients)
    return done


def range_of(value: int, device: torch.device) -> tuple[int, int]:
    """The smallest and the largest `value` that a worker has."""
    ends = torch.tensor([-value, value], device=device)
    if place()[1] > 1:
        dist.all_reduce(ends, dist.ReduceOp.MAX)
    return -int(ends[0]), int(ends[1])
