"""Sums in memory that workers share, in real processes."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from pipeline.clustering import shared_sums as module
from pipeline.clustering.direct_sums import DirectSums
from pipeline.clustering.shared_sums import shared_sums
from tests.support.worker_processes import begin_worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux alone")
TIMEOUT_S = 20.0
PART = 64
"""Bytes that are added at a time here: of 16 numbers in float32."""


def numbers(rank: int, size: int, dtype: torch.dtype) -> Tensor:
    """That add to other bits in another order."""
    generator = torch.Generator().manual_seed(rank)
    sizes = 10.0 ** torch.randint(-6, 7, (size,), generator=generator)
    return (torch.randn(size, generator=generator, dtype=torch.float64) * sizes).to(dtype)


def sums_of_three(rank: int, folder: str) -> None:
    begin_worker(rank, 3, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART_BYTES", PART)
        direct = DirectSums(TIMEOUT_S)
        shared = shared_sums(direct)
        assert shared is not None
        for size in (0, 1, 2, 3, 15, 16, 17, 160, 1000):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                of_all = [numbers(other, size, dtype) for other in range(3)]
                values = of_all[rank].clone()
                shared.sum(values)
                assert torch.equal(values, of_all[0] + of_all[1] + of_all[2]), (size, dtype)
        picture = torch.full((5, 4, 3), rank + 1.0)
        shared.sum(picture)
        assert torch.equal(picture, torch.full((5, 4, 3), 6.0))
        with pytest.raises(ConnectionError, match="sums less or more" if rank == 0 else "sums|ended|reset"):
            shared.sum(torch.ones(5 + rank**2))
    os._exit(0)


def test_all_workers_get_the_sum_in_the_order_of_ranks(tmp_path: Path) -> None:
    spawn(sums_of_three, (str(tmp_path),), nprocs=3)


def no_room(patch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr(os, "posix_fallocate", full)


def another_machine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "PROCESSES", Path("/nowhere"))


def another_file(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Path, "readlink", lambda _: Path("/memfd:visual-trends-0123456789abcdef (deleted)"))


def one_has_no_memory(rank: int, folder: str, without: int, hide: Callable[[pytest.MonkeyPatch], None]) -> None:
    begin_worker(rank, 3, folder)
    with pytest.MonkeyPatch.context() as patch:
        if rank == without:
            hide(patch)
        direct = DirectSums(TIMEOUT_S)
        assert shared_sums(direct) is None
        values = torch.tensor([rank + 1.0])
        direct.sum(values)  # they still understand each other
        assert values.item() == 6
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("without", "hide"), [(0, no_room), (1, another_machine), (2, another_machine), (1, another_file)]
)
def test_without_room_or_on_other_machines_nobody_shares(
    tmp_path: Path, without: int, hide: Callable[[pytest.MonkeyPatch], None]
) -> None:
    spawn(one_has_no_memory, (str(tmp_path), without, hide), nprocs=3)


def the_other_is_late(rank: int, folder: str) -> None:
    begin_worker(rank, 2, folder)
    direct = DirectSums(0.5)
    if rank == 1:
        dist.broadcast(torch.zeros(3, dtype=torch.int64), 0)  # the first one's part of `shared_sums`, and no more
        time.sleep(2.0)
    else:
        with pytest.raises(TimeoutError):
            shared_sums(direct)
        Path(folder, "noticed").touch()
    os._exit(0)


def test_a_worker_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    """Otherwise the group would go on with connections on which an answer may still come."""
    spawn(the_other_is_late, (str(tmp_path),), nprocs=2)
    assert (tmp_path / "noticed").exists()
