"""One member of a tar, read by where it lies.

A plain tar is opened at the member. A compressed one has to be decompressed up to it; the shards of a crawl go
through a tar from its start to its end, so a process keeps where it is and goes on from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.errors import StorageError
from pipeline.ingest.address import MemberAddress
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.gzipped import BROKEN_GZIP, unpacked

MAX_READERS = 4
"""Compressed tars that a process keeps open, or places in one: threads that ask out of order get one each."""

SKIP_BYTES = 1 << 20

Opener = Callable[[str], BinaryIO]
"""Opens an archive's address for reading from any place, unbuffered."""


@dataclass
class _Reader:
    archive: str
    file: BinaryIO
    stream: BinaryIO
    position: int = 0


_readers: list[_Reader] = []
_lock = threading.Lock()


def read_member(member: MemberAddress, max_bytes: int, open_archive: Opener) -> bytes:
    """The content of `member`.

    Raises:
        Rejected: too_many_bytes (above `max_bytes`; nothing is read then), and what `open_archive` raises.
        StorageError: the tar has changed since it was listed, and what `open_archive` raises.
    """
    if member.size > max_bytes:
        raise Rejected("too_many_bytes", f"{member.size} bytes, at most {max_bytes} are read")
    read = _read_compressed if member.gzip else _read_plain
    data = read(member, open_archive)
    if len(data) != member.size:
        raise StorageError(f"{member.archive} has changed since it was listed; run the same command again")
    return data


def _read_plain(member: MemberAddress, open_archive: Opener) -> bytes:
    with open_archive(member.archive) as file:
        file.seek(member.offset)
        return _up_to(file, member.size)


def _read_compressed(member: MemberAddress, open_archive: Opener) -> bytes:
    with _lock:
        before = [r for r in _readers if r.archive == member.archive and r.position <= member.offset]
        if before:
            reader = max(before, key=lambda r: r.position)
            _readers.remove(reader)
        else:
            file = open_archive(member.archive)
            reader = _Reader(member.archive, file, unpacked(file))
        try:
            while skipped := len(reader.stream.read(min(SKIP_BYTES, member.offset - reader.position))):
                reader.position += skipped
            data = _up_to(reader.stream, member.size)
        except BROKEN_GZIP:
            _close(reader)
            return b""
        except BaseException:
            _close(reader)
            raise
        reader.position += len(data)
        _readers.append(reader)
        while len(_readers) > MAX_READERS:
            _close(_readers.pop(0))
        return data


def _up_to(stream: BinaryIO, size: int) -> bytes:
    """The next `size` bytes, fewer only at the end: an unbuffered read may return less than it was asked for."""
    data = bytearray()
    while len(data) < size and (part := stream.read(size - len(data))):
        data += part
    return bytes(data)


def _close(reader: _Reader) -> None:
    with suppress(OSError):
        reader.stream.close()
        reader.file.close()
