"""Sums in memory that workers share, in real processes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from pipeline.clustering import shared_sums
from pipeline.clustering.direct_sums import DirectSums
from pipeline.clustering.shared_sums import SHARED, SharedSums
from tests.worker_processes import begin_worker

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED} here")
TIMEOUT_S = 20.0
PART = 64
"""Bytes that are added at a time here: of 16 numbers in float32."""


def numbers(rank: int, size: int, dtype: torch.dtype) -> Tensor:
    """That add to other bits in another order."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(size, generator=generator, dtype=dtype) * 10.0 ** torch.randint(
        -6, 7, (size,), generator=generator
    )


def sums_of_three(rank: int, folder: str) -> None:
    begin_worker(rank, 3, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_sums, "PART_BYTES", PART)
        direct = DirectSums(TIMEOUT_S)
        shared = SharedSums(direct)
        for size in (0, 1, 2, 3, 15, 16, 17, 160, 1000):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                of_all = [numbers(other, size, dtype) for other in range(3)]
                values = of_all[rank].clone()
                shared.sum(values)
                assert torch.equal(values, of_all[0] + of_all[1] + of_all[2]), (size, dtype)
        picture = torch.full((5, 4, 3), rank + 1.0)
        shared.sum(picture)
        assert torch.equal(picture, torch.full((5, 4, 3), 6.0))
        direct.close()
    dist.destroy_process_group()


def test_all_workers_get_the_sum_in_the_order_of_ranks(tmp_path: Path) -> None:
    before = names()
    spawn(sums_of_three, (str(tmp_path),), nprocs=3)
    assert names() <= before, "a killed worker could leave memory behind"


def names() -> set[str]:
    return {path.name for path in SHARED.glob("visual-trends-*")}


def one_has_no_memory(
    rank: int, folder: str, without: int, patch_it: Callable[[pytest.MonkeyPatch, str], None]
) -> None:
    begin_worker(rank, 3, folder)
    with pytest.MonkeyPatch.context() as patch:
        if rank == without:
            patch_it(patch, folder)
        direct = DirectSums(TIMEOUT_S)
        with pytest.raises(OSError, match="do not share memory"):
            SharedSums(direct)
        values = torch.tensor([rank + 1.0])
        direct.sum(values)  # they still understand each other
        assert values.item() == 6
        direct.close()
    dist.destroy_process_group()


def no_room(patch: pytest.MonkeyPatch, folder: str) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr(os, "posix_fallocate", full)


def another_machine(patch: pytest.MonkeyPatch, folder: str) -> None:
    patch.setattr(shared_sums, "SHARED", Path(folder))


@pytest.mark.parametrize(
    ("without", "patch_it"), [(0, no_room), (0, another_machine), (1, another_machine), (2, another_machine)]
)
def test_without_room_or_on_other_machines_nobody_shares(
    tmp_path: Path, without: int, patch_it: Callable[[pytest.MonkeyPatch, str], None]
) -> None:
    before = names()
    spawn(one_has_no_memory, (str(tmp_path), without, patch_it), nprocs=3)
    assert names() <= before
    assert not list(tmp_path.glob("visual-trends-*"))
