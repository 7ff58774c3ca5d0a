"""Addresses of the members of tars and ZIP archives, and reading one of them.

An address has the form ``<archive>#member=<name>&offset=<bytes>&size=<bytes>``, followed by ``&gzip`` in a compressed
tar and by ``&zip=<compressed size>`` in a ZIP. It contains the position of the member, so that only its bytes are read
and its name is never trusted: nothing is extracted to a path that an archive chose.

A plain tar and a ZIP are opened at the position of the member. A compressed tar must be decompressed up to it. Because
the shards of a crawl read a tar from its start to its end, a process keeps its position in the tar and continues there.
"""

from __future__ import annotations

import io
import re
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote_to_bytes

from pipeline.errors import StorageError
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.archives.gzipped import BROKEN_GZIP, decompressed

MAX_READERS = 4
"""Maximum number of open compressed tars per process. One tar may be open at several positions, for several threads."""

SKIP_BYTES = 1 << 20
"""Number of bytes decompressed at once while skipping content."""

ZIP_HEADER = struct.Struct("<4s2xHH16xHH")
"""Header of a member of a ZIP: signature, flags, compression, and the lengths of the name and of the extra field."""

STORED, DEFLATED = 0, 8
"""Compressions of ZIP members that are read."""

MAX_STREAM_BYTES = 32 * 2**30
"""Maximum size of a member that is read as a stream, in bytes."""

_MEMBER = re.compile(
    r"(?P<archive>.+)#member=(?P<name>[^#&]*)&offset=(?P<offset>[0-9]{1,18})&size=(?P<size>[0-9]{1,18})"
    r"(?P<gzip>&gzip|&zip=(?P<zipped>[0-9]{1,18}))?",
    re.DOTALL,
)

Opener = Callable[[str], BinaryIO]
"""Function that opens the file at an address as an unbuffered, seekable stream."""


@dataclass(frozen=True)
class MemberAddress:
    """Address of a regular file inside a tar or a ZIP."""

    archive: str
    """Address of the archive: an absolute path, ``file://`` or ``s3://``."""
    name: str
    """Name as stored in the archive; only informative."""
    offset: int
    """Position of the first byte in the tar, decompressed; in a ZIP, of the member's header."""
    size: int
    """Size in bytes, decompressed."""
    gzip: bool = False
    """Whether the tar is compressed, so that everything before the member must be decompressed to reach it."""
    zipped: int | None = None
    """Compressed size in bytes of the member of a ZIP; None in a tar."""

    @property
    def uri(self) -> str:
        name = quote(self.name.encode("utf-8", "surrogateescape"), safe="/")
        packing = "&gzip" if self.gzip else "" if self.zipped is None else f"&zip={self.zipped}"
        return f"{self.archive}#member={name}&offset={self.offset}&size={self.size}{packing}"


def parse_member(uri: str) -> MemberAddress | None:
    """Parse the address `uri` of a member; return None if it is another kind of address."""
    if (match := _MEMBER.fullmatch(uri)) is None:
        return None
    name = unquote_to_bytes(match["name"]).decode("utf-8", "surrogateescape")
    zipped = None if match["zipped"] is None else int(match["zipped"])
    packed = match["gzip"] is not None and zipped is None
    return MemberAddress(match["archive"], name, int(match["offset"]), int(match["size"]), packed, zipped)


@dataclass(frozen=True, slots=True)
class Member:
    """A file, link or device in an archive, as it is listed; folders are not members."""

    name: str
    """Name as stored in the archive: any text, with lone surrogates for bytes that are not UTF-8."""
    offset: int
    """Position in the archive, as in `MemberAddress`."""
    size: int
    """Size of the content in bytes."""
    problem: str | None = None
    """Why the member cannot be read in place, if it cannot."""
    content: bytes | None = None
    """Content, if it was requested."""
    zipped: int | None = None
    """Compressed size in bytes in a ZIP."""


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
        Rejected: too_many_bytes (above `max_bytes`; nothing is read then), corrupt (a member of a ZIP that cannot be
            decompressed), and the errors of `open_archive`.
        StorageError: the archive has changed since it was listed, and the errors of `open_archive`.
    """
    # Deflate makes content that cannot be compressed a little longer.
    if member.size > max_bytes or (member.zipped or 0) > max_bytes + max_bytes // 100 + 1024:
        raise Rejected("too_many_bytes", f"{member.size} bytes, at most {max_bytes} are read")
    if member.zipped is not None:
        return b"".join(_unzipped(member, member.zipped, open_archive))
    read = _read_compressed if member.gzip else _read_plain
    data = read(member, open_archive)
    if len(data) != member.size:
        raise StorageError(f"{member.archive} has changed since it was listed; run the same command again")
    return data


def _read_plain(member: MemberAddress, open_archive: Opener) -> bytes:
    with open_archive(member.archive) as file:
        file.seek(member.offset)
        return _read_up_to(file, member.size)


def open_zipped(member: MemberAddress, open_archive: Opener) -> BinaryIO:
    """Return a seekable stream with the content of a member of a ZIP, which is decompressed to a temporary file.

    Raises the same errors as `read_member`, for members above MAX_STREAM_BYTES, and StorageError for a full disk.
    """
    if member.zipped is None or member.size > MAX_STREAM_BYTES:
        raise Rejected("unreadable", "a member of a tar, or one that is too large, cannot be read as a table")
    copy = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    try:
        for part in _unzipped(member, member.zipped, open_archive):
            copy.write(part)
    except OSError as error:
        copy.close()
        raise StorageError(f"cannot decompress to {tempfile.gettempdir()}: {error.strerror or error}") from error
    copy.seek(0)
    return cast(BinaryIO, copy)


def _unzipped(member: MemberAddress, zipped: int, open_archive: Opener) -> Iterator[bytes]:
    """Yield the content of a member of a ZIP, decompressed. Raises the same errors as `read_member`."""
    head = ZIP_HEADER.size + 2 * len(member.name.encode("utf-8", "surrogateescape")) + 1024
    # The buffer makes one request to S3 of the header and the content of a small member.
    with open_archive(member.archive) as raw, io.BufferedReader(cast(Any, raw), min(zipped, SKIP_BYTES) + head) as file:
        file.seek(member.offset)
        header = file.read(ZIP_HEADER.size)
        if len(header) < ZIP_HEADER.size or not header.startswith(b"PK\3\4"):
            raise Rejected("corrupt", "not where the directory of the ZIP says, or changed since the ZIP was listed")
        _, _, compression, name_bytes, extra_bytes = ZIP_HEADER.unpack(header)
        file.seek(member.offset + ZIP_HEADER.size + name_bytes + extra_bytes)
        decompressor = zlib.decompressobj(-zlib.MAX_WBITS) if compression == DEFLATED else None
        missing, size = zipped, 0
        try:
            while missing and (part := file.read(min(missing, SKIP_BYTES))):
                missing -= len(part)
                while part:
                    data = part if decompressor is None else decompressor.decompress(part, SKIP_BYTES)
                    part = b"" if decompressor is None else decompressor.unconsumed_tail
                    size += len(data)
                    if size > member.size:
                        raise Rejected("corrupt", f"more than the {member.size} bytes that the ZIP claims")
                    yield data
        except zlib.error as error:
            raise Rejected("corrupt", f"cannot be decompressed ({error})") from error
        if missing or size < member.size:
            raise Rejected("truncated", f"{size} of {member.size} bytes in the ZIP")


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
