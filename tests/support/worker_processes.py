"""Process group of training workers without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def process_group(rank: int, world_size: int, folder: str) -> Iterator[None]:
    """Context in which the process is a member of a gloo group of `world_size` processes and uses one thread.

    The processes find each other through a file in `folder`.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
