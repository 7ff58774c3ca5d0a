"""Sums over workers on CPUs, over connections of their own and in the thread that asks for them.

gloo hands every operation to other threads. Where all cores compute, each of those waits for the scheduler until it may
run: a sum of a kilobyte takes 1 to 3 ms, over a plain connection 0.1 ms, and batch normalisation needs 40 sums in an
iteration.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
from contextlib import suppress

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

GREETING = struct.Struct("!QQ")
"""What a worker says first: the secret of its group, and its rank."""
LENGTH = struct.Struct("!Q")
"""Bytes that follow: workers that do not ask for the same sum must not add what they have."""
GREETING_S = 10.0
"""Longest wait for a greeting: whoever else connects must not hold up the group."""
LOOPBACK = "127.0.0.1"


class DirectSums:
    """Connections of all workers of the default process group to the first one.

    All of them make it at once: the first tells the others through the group where it listens, on the address in
    MASTER_ADDR, as torch and Ray Train set it, or on loopback.

    Args:
        timeout_s: that a worker waits for another in one sum.

    Raises OSError where they cannot connect.
    """

    def __init__(self, timeout_s: float) -> None:
        self._peers: list[socket.socket] = []
        """By rank, without this worker: all the others, or the first one alone."""
        self._first = dist.get_rank() == 0
        host = os.environ.get("MASTER_ADDR", LOOPBACK)
        if self._first:
            with _listen(host) as listener:
                secret = secrets.randbits(63)
                dist.broadcast(torch.tensor([listener.getsockname()[1], secret]), 0)
                listener.settimeout(timeout_s)
                self._peers = _accept(listener, secret, dist.get_world_size() - 1)
        else:
            where = torch.zeros(2, dtype=torch.int64)
            dist.broadcast(where, 0)
            port, secret = where.tolist()
            self._peers = [socket.create_connection((host, port), timeout_s)]
            self._peers[0].sendall(GREETING.pack(secret, dist.get_rank()))
        for peer in self._peers:
            peer.settimeout(timeout_s)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a group that pauses is silent

    def close(self) -> None:
        """End the connections; the others' next sum fails."""
        for peer in self._peers:
            peer.close()

    def sum(self, values: Tensor) -> None:
        """Replace `values` (any shape, on the CPU, the same on all workers) by their sum over workers, in place.

        The first worker adds them in the order of ranks, so that all get the same bits, and the same ones every time.

        Raises OSError where another worker is gone, does not answer in time, or has something else to sum.
        """
        if not values.numel():
            return
        # The memory of `values` itself, where that is in one piece.
        own = values.detach().contiguous().reshape(-1).numpy()
        if self._first:
            part = np.empty_like(own)
            for peer in self._peers:
                _receive_part(peer, part.data)
                own += part
        message = LENGTH.pack(own.nbytes) + own.tobytes()
        for peer in self._peers:
            peer.sendall(message)
        if not self._first:
            _receive_part(self._peers[0], own.data)
        if not values.is_contiguous():
            values.copy_(torch.from_numpy(own).reshape(values.shape))


def _listen(host: str) -> socket.socket:
    """A socket that others reach at `host`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, 0), family=family, backlog=dist.get_world_size())
    except OSError:  # an address that this machine does not know as its own, behind a translation
        return socket.create_server(("", 0), family=family, backlog=dist.get_world_size())


def _accept(listener: socket.socket, secret: int, peers: int) -> list[socket.socket]:
    """The connections of the workers 1 to `peers`, by rank."""
    found: dict[int, socket.socket] = {}
    while len(found) < peers:
        connection, _ = listener.accept()
        with suppress(OSError):
            connection.settimeout(GREETING_S)
            greeting = bytearray(GREETING.size)
            _receive(connection, memoryview(greeting))
            said, rank = GREETING.unpack(greeting)
            if said == secret:
                found[rank] = connection
                continue
        connection.close()
    return [found[rank] for rank in sorted(found)]


def _receive_part(connection: socket.socket, values: memoryview) -> None:
    """Fill `values` from the next message of `connection`, which must be as long."""
    head = bytearray(LENGTH.size)
    _receive(connection, memoryview(head))
    (length,) = LENGTH.unpack(head)
    if length != values.nbytes:
        raise ConnectionError(f"another worker sums {length} bytes where this one sums {values.nbytes}")
    _receive(connection, values)


def _receive(connection: socket.socket, values: memoryview) -> None:
    """Fill `values` from `connection`."""
    room = values.cast("B")
    while room:
        count = connection.recv_into(room)
        if not count:
            raise ConnectionError("another worker has ended")
        room = room[count:]
