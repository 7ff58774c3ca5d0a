"""List the members of a tar in one pass, with the offset of each regular file, without extracting anything.

A tar of a crawl is hostile input: names are never used as paths, links and devices are never followed, and the size of
the extended headers that carry long names is bounded. Memory does not grow with the number of members.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pipeline.ingest.sources.archives.gzipped import BROKEN_GZIP, decompressed, is_compressed
from pipeline.ingest.sources.archives.members import Member

BLOCK = tarfile.BLOCKSIZE

MAX_EXTENSION_BYTES = 1 << 20
"""Maximum size of an extended header in bytes; the name in it is at most as long as a path can be."""

MAX_TAR_BYTES = 1 << 43
"""Maximum size of a tar in bytes, decompressed: 8 TiB. File systems refuse to seek much further."""

SKIP_BYTES = 1 << 20
"""Number of bytes read at once while skipping content."""

_FILES = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
_LINKS_AND_DEVICES = {tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE}
_WITHOUT_CONTENT = _LINKS_AND_DEVICES | {tarfile.DIRTYPE}


class BrokenTar(Exception):  # noqa: N818 (describes a state, as Rejected does)
    """The rest of the tar cannot be read; the members before it are valid."""


def iter_members(file: BinaryIO, wants_content: Callable[[str, int], bool]) -> Iterator[Member]:
    """Yield the members of the tar in `file`, gzipped or not, in order.

    Args:
        file: buffered and seekable, at its start.
        wants_content: whether to return the content of a file of this name and size; it is held in memory.

    Raises BrokenTar where the file is not a tar, is damaged or is cut off.
    """
    try:
        yield from _Reader(file).members(wants_content)
    except BROKEN_GZIP as error:
        raise BrokenTar(f"gzip compression damaged or cut off ({error})") from error
    except (ValueError, OverflowError) as error:  # of the standard library, for headers that nobody foresaw
        raise BrokenTar(f"broken ({error})") from error


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._seekable = not is_compressed(file)
        self._file = file if self._seekable else decompressed(file)
        self._position = 0

    def members(self, wants_content: Callable[[str, int], bool]) -> Iterator[Member]:
        name = size = None
        sparse = False
        while (header := self._header()) is not None:
            if header.type in {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE}:
                extension = self._extension(header)
                if header.type == tarfile.GNUTYPE_LONGNAME:
                    name = extension.rstrip(b"\0")
                elif header.type == tarfile.XHDTYPE:
                    values = _pax_values(extension)
                    name, sparse = values.get(b"path", name), any(k.startswith(b"GNU.sparse.") for k in values)
                    size = _pax_size(values)
                continue
            member = self._member(header, name, size, sparse, wants_content)
            name = size = None
            sparse = False
            if member is not None:
                yield member

    def _member(
        self,
        header: tarfile.TarInfo,
        long_name: bytes | None,
        long_size: int | None,
        sparse: bool,
        wants_content: Callable[[str, int], bool],
    ) -> Member | None:
        """Return the member of `header` and the extended headers before it; None for a folder or another entry."""
        name = header.name if long_name is None else long_name.decode("utf-8", "surrogateescape")
        size = header.size if long_size is None else long_size
        if not 0 <= size <= MAX_TAR_BYTES - self._position:
            raise BrokenTar(f"a member claims a size of {size} bytes")
        if header.type in _WITHOUT_CONTENT or (header.type in _FILES and name.endswith("/")):
            size = 0
        offset, content = self._position, None
        regular = header.type in _FILES and not sparse
        if regular and wants_content(name, size):
            content = self._read_exactly(size)
        self._skip_to(offset + size, name)
        self._skip_to(offset + -(-size // BLOCK) * BLOCK, name)
        if (
            (regular and not name.endswith("/"))
            or sparse
            or header.type in _LINKS_AND_DEVICES | {tarfile.GNUTYPE_SPARSE}
        ):
            problem = None if regular else "a link, a device or a sparse file in a tar"
            return Member(name, offset, size, problem, content)
        return None

    def _header(self) -> tarfile.TarInfo | None:
        """Read the next header; return None at the end."""
        block = self._read(BLOCK)
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return None
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise BrokenTar("not a tar" if self._position == len(block) else f"broken or cut off ({error})") from error

    def _extension(self, header: tarfile.TarInfo) -> bytes:
        if not 0 <= header.size <= MAX_EXTENSION_BYTES:
            raise BrokenTar(f"an extended header claims {header.size} bytes, at most {MAX_EXTENSION_BYTES} are read")
        start = self._position
        data = self._read_exactly(header.size)
        self._skip_to(start + -(-header.size // BLOCK) * BLOCK, "an extended header")
        return data

    def _read_exactly(self, size: int) -> bytes:
        data = self._read(size)
        if len(data) < size:
            raise BrokenTar(f"cut off after {self._position} bytes")
        return data

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._position += len(data)
        return data

    def _skip_to(self, position: int, name: str) -> None:
        """Continue at `position`. Raises BrokenTar where the file ends before it."""
        if self._seekable and position > self._position:
            self._file.seek(position - 1)
            self._position = position - 1
        while self._position < position:
            if not self._read(min(SKIP_BYTES, position - self._position)):
                raise BrokenTar(f"cut off inside {name!r}")


def _pax_values(extension: bytes) -> dict[bytes, bytes]:
    """Parse the ``length key=value`` lines of an extended header. Raises BrokenTar where they are invalid."""
    values: dict[bytes, bytes] = {}
    start = 0
    while start < len(extension) and extension[start] != 0:
        digits, space, _ = extension[start : start + 20].partition(b" ")
        if not space or not digits.isdigit() or int(digits) <= len(digits) + 1:
            raise BrokenTar("an extended header is invalid")
        line = extension[start + len(digits) + 1 : start + int(digits)]
        key, equals, value = line.rstrip(b"\n").partition(b"=")
        if not equals:
            raise BrokenTar("an extended header is invalid")
        values[key] = value
        start += int(digits)
    return values


def _pax_size(values: dict[bytes, bytes]) -> int | None:
    digits = values.get(b"size")
    if digits is None:
        return None
    if not digits.isdigit() or len(digits) > 18:
        raise BrokenTar("an extended header has an invalid size")
    return int(digits)
