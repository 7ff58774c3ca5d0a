"""Sums of large tensors over workers on the CPUs of one machine, through memory that they share.

Each element is added in the order of ranks, wherever it lies. gloo's order depends on an element's place in its bucket,
and DDP deals its buckets anew after the first step, so a resumed run would be rounded differently. It is faster, too:
two workers that do nothing else exchange 60 MB in 20 ms instead of 50 to 70.
"""

from __future__ import annotations

import math
import mmap
import os
import secrets
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.clustering.direct_sums import DirectSums

SHARED = Path("/dev/shm")
"""Where files are memory."""
PART_BYTES = 4 * 2**20
"""That each worker adds at a time: what caches hold."""


class SharedSums:
    """Memory that all workers of the default process group share; all of them make it at once.

    Args:
        direct: connections of the same workers, on which they wait for each other.

    Raises OSError, on all workers alike, where they are not on one machine, or it has no room.
    """

    def __init__(self, direct: DirectSums) -> None:
        self._direct = direct
        self._rank, world_size = dist.get_rank(), dist.get_world_size()
        shape = (2, world_size, PART_BYTES)
        name = torch.tensor([secrets.randbits(63)])
        dist.broadcast(name, 0)
        path = SHARED / f"visual-trends-{int(name):016x}"
        memory: mmap.mmap | None = None
        # The first worker makes it, then the others look for it; when all have it, it needs no name any more.
        for turn in (True, False):
            if turn == (self._rank == 0):
                with suppress(OSError):
                    memory = _mapped(path, math.prod(shape), create=turn)
            found = torch.tensor([float(memory is not None)])
            direct.sum(found)
        if self._rank == 0:
            path.unlink(missing_ok=True)
        if memory is None or int(found) < world_size:
            raise OSError("workers do not share memory")
        self._parts = torch.frombuffer(memory, dtype=torch.uint8).view(shape)
        self._turn = 0

    def sum(self, values: Tensor) -> None:
        """Replace `values` (contiguous, on the CPU, of one shape on all workers) by their sum over workers, in place.

        Each worker adds a piece of everyone's values in the order of ranks, so that all get the same bits, and the
        same ones every time. Raises OSError as `DirectSums.sum`.
        """
        for part in values.view(-1).split(PART_BYTES // values.element_size()):
            # Two turns in turn: while some still read the sum of one, others begin the next.
            shared = self._parts[self._turn].view(values.dtype)[:, : len(part)]
            self._turn = 1 - self._turn
            shared[self._rank].copy_(part)
            self._direct.wait()
            total, *others = shared.tensor_split(len(shared), dim=1)[self._rank]
            for other in others:
                total += other
            self._direct.wait()
            part.copy_(shared[0])


def _mapped(path: Path, size: int, create: bool) -> mmap.mmap:
    """The file `path` of `size` bytes as memory; raises OSError where there is no room for it."""
    descriptor = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
    try:
        if create:
            os.posix_fallocate(descriptor, 0, size)  # memory that is missing later would end the process
        return mmap.mmap(descriptor, size)
    except OSError:
        if create:
            path.unlink()
        raise
    finally:
        os.close(descriptor)
