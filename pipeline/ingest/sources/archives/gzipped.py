"""Gzipped files of sources, decompressed as a stream that returns all readable content before it fails."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any, BinaryIO, cast

BUFFER_BYTES = 1 << 16

BROKEN_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)
"""Exceptions that reading a gzipped file raises where it is cut off or damaged."""


def is_compressed(file: BinaryIO) -> bool:
    """Return whether `file`, which must be at its start, begins with the magic number of gzip; rewind it."""
    magic = file.read(2)
    file.seek(0)
    return magic == b"\x1f\x8b"


def decompressed(file: BinaryIO) -> BinaryIO:
    """Return the content of the gzipped `file` as a buffered stream that can only be read forwards.

    Reading raises one of BROKEN_GZIP where the file is cut off or damaged.
    """
    return cast(BinaryIO, io.BufferedReader(_GzipStream(file), BUFFER_BYTES))


class _GzipStream(io.RawIOBase):
    """Decompressed content in pieces: unlike GzipFile, it returns what it has decompressed before it raises."""

    def __init__(self, file: BinaryIO) -> None:
        self._gzip = gzip.GzipFile(fileobj=file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._gzip.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)
