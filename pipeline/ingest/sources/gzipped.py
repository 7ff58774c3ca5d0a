"""Gzipped files of sources, unpacked as a stream that gives all there is before it fails."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any, BinaryIO, cast

BUFFER_BYTES = 1 << 16

BROKEN_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)
"""What reading a gzipped file raises where it is cut off or damaged."""


def is_compressed(file: BinaryIO) -> bool:
    """Whether `file` starts as gzip does; it is rewound."""
    magic = file.read(2)
    file.seek(0)
    return magic == b"\x1f\x8b"


def unpacked(file: BinaryIO) -> BinaryIO:
    """The content of the gzipped `file`, buffered, forwards only. Reading raises one of BROKEN_GZIP where it ends."""
    return cast(BinaryIO, io.BufferedReader(_Unpacked(file), BUFFER_BYTES))


class _Unpacked(io.RawIOBase):
    """A GzipFile fills its reader's whole buffer or fails; this hands over what was unpacked before the failure."""

    def __init__(self, file: BinaryIO) -> None:
        self._gzip = gzip.GzipFile(fileobj=file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._gzip.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)
