"""Sums over connections, in real processes."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessRaisedException, spawn

from pipeline.clustering import direct_sums
from pipeline.clustering.workers import connected, summed
from tests.support.worker_processes import begin_worker

TIMEOUT_S = 20.0


def sums_of_three(rank: int, folder: str) -> None:
    begin_worker(rank, 3, folder)
    # Numbers that three workers add to other bits in another order.
    values = torch.tensor([[1e16, 1.0], [-1e16, 0.5], [3.0, 0.25]], dtype=torch.float64)[rank]
    large = torch.arange(2**20, dtype=torch.float32) * (rank + 1)
    with connected(TIMEOUT_S):
        assert summed(values.clone()).tolist() == [3.0, 1.75]
        assert summed(torch.tensor(rank)).item() == 3
        assert torch.equal(summed(large.clone()), 6 * torch.arange(2**20, dtype=torch.float32))
        columns = torch.full((3, 2), rank + 1.0).T
        assert torch.equal(summed(columns), torch.full((2, 3), 6.0))
        assert torch.equal(columns, torch.full((2, 3), 6.0))
        every_other = torch.full((6,), rank + 1.0)
        summed(every_other[::2])
        assert every_other.tolist() == [6.0, rank + 1.0] * 3
        assert summed(torch.empty(0)).numel() == 0
    assert summed(torch.tensor([rank])).tolist() == [3]  # by gloo again
    dist.destroy_process_group()


def test_all_workers_get_the_same_sums_of_any_shape(tmp_path: Path) -> None:
    spawn(sums_of_three, (str(tmp_path),), nprocs=3)


def one_dies(rank: int, folder: str, dying: int) -> None:
    begin_worker(rank, 3, folder)
    with connected(TIMEOUT_S):
        summed(torch.ones(4))
        if rank == dying:
            os._exit(0)
        started = time.monotonic()
        with pytest.raises(OSError, match=r"another worker has ended|reset|pipe"):
            summed(torch.ones(4))
            summed(torch.ones(4))
    assert time.monotonic() - started < TIMEOUT_S / 2
    Path(folder, f"{rank}.noticed").touch()
    os._exit(0)  # the group is broken: nobody can leave it together


@pytest.mark.parametrize("dying", [0, 1, 2])
def test_the_others_notice_a_death_at_once(tmp_path: Path, dying: int) -> None:
    spawn(one_dies, (str(tmp_path), dying), nprocs=3)
    assert {path.stem for path in tmp_path.glob("*.noticed")} == {str(rank) for rank in {0, 1, 2} - {dying}}


def one_is_stuck(rank: int, folder: str) -> None:
    begin_worker(rank, 2, folder)
    with connected(1.0):
        summed(torch.ones(4))
        if rank == 1:
            time.sleep(4.0)
        summed(torch.ones(4))


def test_a_worker_that_is_stuck_is_waited_for_no_longer_than_the_timeout(tmp_path: Path) -> None:
    with pytest.raises(ProcessRaisedException, match=r"timed out|TimeoutError"):
        spawn(one_is_stuck, (str(tmp_path),), nprocs=2)


def strangers_come_first(rank: int, folder: str) -> None:
    """The first worker lets two strangers in line before the other worker comes."""
    begin_worker(rank, 2, folder)
    strangers: list[socket.socket] = []
    accept, connect = direct_sums._accept, socket.create_connection

    def accept_strangers_too(listener: socket.socket, *rest: Any) -> list[socket.socket]:
        strangers.extend(connect(listener.getsockname()) for _ in range(2))
        strangers[0].sendall(direct_sums.GREETING.pack(7, 1))  # the other one says nothing
        return accept(listener, *rest)

    def connect_late(*arguments: Any) -> socket.socket:
        time.sleep(0.3)
        return connect(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct_sums, "GREETING_S", 0.5)
        patch.setattr(direct_sums, "_accept", accept_strangers_too)
        patch.setattr(socket, "create_connection", connect_late)
        with connected(TIMEOUT_S):
            assert summed(torch.tensor([rank + 1.0])).tolist() == [3.0]
    dist.destroy_process_group()


def test_who_does_not_know_the_secret_stays_outside(tmp_path: Path) -> None:
    spawn(strangers_come_first, (str(tmp_path),), nprocs=2)


def other_sums(rank: int, folder: str) -> None:
    begin_worker(rank, 2, folder)
    with connected(TIMEOUT_S), pytest.raises(ConnectionError, match=r"sums|ended|reset"):
        summed(torch.ones(4 + rank))
    os._exit(0)


def test_workers_that_ask_for_different_sums_are_told_so(tmp_path: Path) -> None:
    spawn(other_sums, (str(tmp_path),), nprocs=2)


def behind_a_translation(rank: int, folder: str) -> None:
    """No machine has the address 192.0.2.1 (of documentation), where the others are told to connect to."""
    begin_worker(rank, 2, folder)
    connect = socket.create_connection
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTER_ADDR", "192.0.2.1")
        patch.setattr(socket, "create_connection", lambda place, *rest: connect(("127.0.0.1", place[1]), *rest))
        with connected(TIMEOUT_S):
            assert summed(torch.tensor([rank + 1.0])).tolist() == [3.0]
    dist.destroy_process_group()


def test_the_first_worker_may_have_an_address_that_only_others_know(tmp_path: Path) -> None:
    spawn(behind_a_translation, (str(tmp_path),), nprocs=2)
