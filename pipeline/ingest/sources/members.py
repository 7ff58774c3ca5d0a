"""Addresses of the members of tars, and reading one of them.

An address has the form ``<tar>#member=<name>&offset=<bytes>&size=<bytes>[&gzip]``. It contains the position of the
member, so that only its bytes are read and its name is never trusted: nothing is extracted to a path that a tar chose.

A plain tar is opened at the position of the member. A compressed one must be decompressed up to it. Because the shards
of a crawl read a tar from its start to its end, a process keeps its position in the tar and continues from there.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote, unquote_to_bytes

from pipeline.errors import StorageError
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.gzipped import BROKEN_GZIP, decompressed

MAX_READERS = 4
"""Maximum number of open compressed tars per process. One tar may be open at several positions, for several threads."""

SKIP_BYTES = 1 << 20
"""Number of bytes decompressed at once while skipping content."""

_MEMBER = re.compile(
    r"(?P<archive>.+)#member=(?P<name>[^#&]*)&offset=(?P<offset>[0-9]{1,18})&size=(?P<size>[0-9]{1,18})(?P<gzip>&gzip)?",
    re.DOTALL,
)

Opener = Callable[[str], BinaryIO]
"""Function that opens the file at an address as an unbuffered, seekable stream."""


@dataclass(frozen=True)
class MemberAddress:
    """Address of a regular file inside a tar."""

    archive: str
    """Address of the tar: an absolute path, ``file://`` or ``s3://``."""
    name: str
    """Name as stored in the tar; only informative."""
    offset: int
    """Position of the first byte in the tar, decompressed."""
    size: int
    """Size in bytes."""
    gzip: bool = False
    """Whether the tar is compressed, so that everything before the member must be decompressed to reach it."""

    @property
    def uri(self) -> str:
        name = quote(self.name.encode("utf-8", "surrogateescape"), safe="/")
        return f"{self.archive}#member={name}&offset={self.offset}&size={self.size}{'&gzip' if self.gzip else ''}"


def parse_member(uri: str) -> MemberAddress | None:
    """Parse the address `uri` of a member; return None if it is another kind of address."""
    if (match := _MEMBER.fullmatch(uri)) is None:
        return None
    name = unquote_to_bytes(match["name"]).decode("utf-8", "surrogateescape")
    return MemberAddress(match["archive"], name, int(match["offset"]), int(match["size"]), match["gzip"] is not None)


@dataclass
class _Reader:
    archive: str
    file: BinaryIO
    stream: BinaryIO
    position: int = 0


_readers: list[_Reader] = []
_lock = threading.Lock()


def read_member(member: MemberAddress, max_bytes: int, open_archive: Opener) -> bytes:
    """Return the content of `member`.

    Raises:
        Rejected: too_many_bytes (above `max_bytes`; nothing is read then), and the errors of `open_archive`.
        StorageError: the tar has changed since it was listed, and the errors of `open_archive`.
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
        return _read_up_to(file, member.size)


def _read_compressed(member: MemberAddress, open_archive: Opener) -> bytes:
    with _lock:
        usable = [r for r in _readers if r.archive == member.archive and r.position <= member.offset]
        if usable:
            reader = max(usable, key=lambda r: r.position)
            _readers.remove(reader)
        else:
            file = open_archive(member.archive)
            reader = _Reader(member.archive, file, decompressed(file))
        try:
            while skipped := len(reader.stream.read(min(SKIP_BYTES, member.offset - reader.position))):
                reader.position += skipped
            data = _read_up_to(reader.stream, member.size)
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


def _read_up_to(stream: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, or fewer at the end only: a single unbuffered read may return less than requested."""
    data = bytearray()
    while len(data) < size and (part := stream.read(size - len(data))):
        data += part
    return bytes(data)


def _close(reader: _Reader) -> None:
    with suppress(OSError):
        reader.stream.close()
        reader.file.close()
