"""List the members of a ZIP archive from its directory, without extracting anything.

A ZIP of a crawl is hostile input: the size of its directory is bounded, members that overlap or that claim impossible
compression are not read, and links, encrypted members and archives inside the archive become rejected records.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from pipeline.ingest.sources.archives.members import DEFLATED, STORED, ZIP_HEADER, Member
from pipeline.ingest.sources.tables.text_lines import likely_encodings

MAX_DIRECTORY_BYTES = 32 * 2**20
"""Maximum size of the directory of a ZIP in bytes, enough for about 300,000 members."""

MAX_COMPRESSION = 1100
"""Maximum ratio of the size of a member to its compressed size; Deflate reaches at most 1032."""

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")
"""Suffixes of archives, which are not read inside a ZIP."""

ENCRYPTED = 0x1
UTF8_NAME = 0x800
"""Flags of a member."""


class BrokenZip(Exception):  # noqa: N818 (describes a state, as Rejected does)
    """The directory of the ZIP cannot be read."""


def list_members(stream: BinaryIO) -> list[Member]:
    """Return the members of the ZIP in `stream`, in the order in which they are stored.

    Raises BrokenZip where the file is not a ZIP, is cut off, or has too large a directory.
    """
    bounded = _BoundedReads(stream)
    try:
        with zipfile.ZipFile(cast(Any, bounded)) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    except BrokenZip:
        raise
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a hostile directory can cause any exception of the standard library
        raise BrokenZip(f"not a ZIP, or cut off or damaged ({error})") from error
    return list(_members(entries, _names(entries)))


def _members(entries: list[zipfile.ZipInfo], names: list[str]) -> Iterator[Member]:
    end = 0
    for entry, name in zip(entries, names, strict=True):
        if name.endswith("/"):
            continue
        problem = _problem(entry, name, end)
        end = max(end, entry.header_offset + ZIP_HEADER.size + entry.compress_size)
        yield Member(name, max(entry.header_offset, 0), entry.file_size, problem, zipped=entry.compress_size)


def _problem(entry: zipfile.ZipInfo, name: str, end: int) -> str | None:
    """Return why a member is not read, if it is not; the member before it ends at `end`."""
    method = zipfile.compressor_names.get(entry.compress_type, str(entry.compress_type))  # type: ignore[attr-defined]
    claimed, held = f"{entry.file_size:,}", f"{entry.compress_size:,}"
    problems = {
        "encrypted; decrypt the ZIP first": entry.flag_bits & ENCRYPTED,
        f"compressed by {method}; pack the ZIP with Deflate": entry.compress_type not in {STORED, DEFLATED},
        "a link in a ZIP": entry.external_attr >> 28 == 0xA,
        "an archive inside a ZIP; unpack it first": name.lower().endswith(ARCHIVE_SUFFIXES),
        "overlaps another member of the ZIP": entry.header_offset < end or entry.header_offset < 0,
        f"claims {claimed} bytes, far more than its {held} compressed bytes can hold": (
            entry.file_size > MAX_COMPRESSION * entry.compress_size + 64
        ),
    }
    return next((problem for problem, applies in problems.items() if applies), None)


def _names(entries: list[zipfile.ZipInfo]) -> list[str]:
    """Return the names of members: UTF-8 where they are, and otherwise in the encoding that all of them suggest."""
    raw = [None if entry.flag_bits & UTF8_NAME else _raw_name(entry.filename) for entry in entries]
    legacy = [name for name in raw if name is not None and not _is_utf8(name)]
    encoding = next(iter(likely_encodings(b"\n".join(legacy[:1000]))), None) if legacy else None
    names = []
    for entry, name in zip(entries, raw, strict=True):
        text = entry.filename
        if name is not None and _is_utf8(name):
            text = name.decode()
        elif name is not None and encoding is not None:
            text = name.decode(encoding, "replace")
        names.append(text.replace("\\", "/"))
    return names


def _raw_name(name: str) -> bytes | None:
    """Return the bytes of a name that zipfile has decoded as code page 437."""
    try:
        return name.encode("cp437")
    except UnicodeEncodeError:
        return None


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


class _BoundedReads(io.RawIOBase):
    """A stream that refuses to read more than a directory may have at once, which zipfile would hold in memory."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, MAX_DIRECTORY_BYTES + 1) if size >= 0 else MAX_DIRECTORY_BYTES + 1)
        if len(data) > MAX_DIRECTORY_BYTES:
            raise BrokenZip(f"a directory of more than {MAX_DIRECTORY_BYTES:,} bytes; split the ZIP into several")
        return data
