"""Sums of large tensors over workers on the CPUs of one machine, through memory that they share.

Each element is added in the order of ranks, wherever it lies. gloo's order depends on an element's place in its bucket,
and DDP deals its buckets anew after the first step, so a resumed run would be rounded differently. It is faster, too:
two workers that do nothing else exchange 60 MB in 20 ms instead of 50 to 70.
"""

from __future__ import annotations

import mmap
import os
import secrets
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.clustering.direct_sums import DirectSums

PROCESSES = Path("/proc")
PART_BYTES = 4 * 2**20
"""That each worker adds at a time: about what caches hold."""
BUFFERS = 2


class SharedSums:
    """Sums over all workers of the default process group.

    Args:
        direct: connections of the same workers, on which they wait for each other.
        memory: of `BUFFERS` parts for each worker, the same for all of them.
    """

    def __init__(self, direct: DirectSums, memory: mmap.mmap) -> None:
        self._direct, self._rank = direct, dist.get_rank()
        self._buffers = torch.frombuffer(memory, dtype=torch.uint8).view(BUFFERS, -1, PART_BYTES)
        self._next = 0

    def sum(self, values: Tensor) -> None:
        """Replace `values` (contiguous, on the CPU, of one shape on all workers) by their sum over workers, in place.

        All get the same bits, and the same ones every time. Raises OSError as `DirectSums.sum`.
        """
        for part in values.view(-1).split(PART_BYTES // values.element_size()):
            # While some still read the sum in one buffer, others begin the next part in the other.
            shared = self._buffers[self._next].view(values.dtype)[:, : len(part)]
            self._next = 1 - self._next
            shared[self._rank].copy_(part)
            self._meet(part.nbytes)
            total, *others = shared.tensor_split(len(shared), dim=1)[self._rank]  # each adds a piece of everyone's
            for other in others:
                total += other
            self._meet(part.nbytes)
            part.copy_(shared[0])

    def _meet(self, n_bytes: int) -> None:
        """Return when all workers have come here with a part of `n_bytes`."""
        of_all = torch.tensor([n_bytes])
        self._direct.sum(of_all)
        if int(of_all) != n_bytes * self._buffers.shape[1]:
            raise ConnectionError(f"another worker sums less or more than the {n_bytes} bytes of this one")


def shared_sums(direct: DirectSums) -> SharedSums | None:
    """Sums through memory of all workers; None, for all alike, where they are not on one machine or it has no room.

    All workers call this at once. The memory is that of a file without a path, which nobody can leave behind. Raises
    OSError where another worker is gone or does not answer in time.
    """
    size = BUFFERS * dist.get_world_size() * PART_BYTES
    where = torch.tensor([os.getpid(), -1, secrets.randbits(63)])
    memory: mmap.mmap | None = None
    with ExitStack() as closing:
        if dist.get_rank() == 0:
            with suppress(OSError, AttributeError):  # not on Linux
                descriptor = os.memfd_create(_name(int(where[2])))
                closing.callback(os.close, descriptor)
                os.posix_fallocate(descriptor, 0, size)  # memory that is missing later would end the process
                memory = mmap.mmap(descriptor, size)
                where[1] = descriptor
        dist.broadcast(where, 0)
        if dist.get_rank() != 0:
            with suppress(OSError):
                process, descriptor, secret = where.tolist()
                memory = _memory_at(process, descriptor, secret, size)
        found = torch.tensor([int(memory is not None)])
        direct.sum(found)
    return None if memory is None or int(found) < dist.get_world_size() else SharedSums(direct, memory)


def _name(secret: int) -> str:
    return f"visual-trends-{secret:016x}"


def _memory_at(process: int, descriptor: int, secret: int, size: int) -> mmap.mmap:
    """The file that another process of this machine has open as `descriptor`; raises OSError where that is not it."""
    path = PROCESSES / str(process) / "fd" / str(descriptor)
    if _name(secret) not in str(path.readlink()):
        raise FileNotFoundError(path)
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), size)
