"""Training workers without Ray: processes of a test that form a group."""

from __future__ import annotations

import torch
import torch.distributed as dist


def begin_worker(rank: int, world_size: int, folder: str) -> None:
    """Join the group of `world_size` processes that meet in `folder`, with one thread as all of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
