"""Read the objects of a JSON array one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import ijson

from pipeline.ingest.sources.tables.line_rows import json_rows
from pipeline.ingest.sources.tables.rows import BrokenRow, NotATable, Row
from pipeline.ingest.sources.tables.text_lines import utf8_stream

MAX_OBJECT_BYTES = 16 * 2**20
"""Maximum size of one object in bytes."""

BUFFER_BYTES = 2**16
"""Number of bytes that are parsed at once."""


def json_array_rows(stream: BinaryIO, encoding: str | None = None) -> Iterator[Row]:
    """Yield the objects of a JSON array, or of a file with one object per line.

    After an invalid part, the rest of the array is one broken row.

    Raises NotATable where the file is neither.
    """
    text, first = utf8_stream(stream, encoding)
    if first == b"{":
        yield from json_rows(text, "utf-8")
        return
    if first != b"[":
        raise NotATable("neither a JSON array nor JSON lines")
    number = 0
    try:
        for number, row in enumerate(objects_at(text, "item"), start=1):
            yield number, row if isinstance(row, dict) else BrokenRow(f"a JSON {type(row).__name__}, not an object")
    except ValueError as error:
        yield number + 1, BrokenRow(f"the rest of the array cannot be read ({error})")


def objects_at(stream: BinaryIO, prefix: str) -> Iterator[Any]:
    """Yield the values at `prefix` (in the notation of ijson) of the JSON document in `stream`, which is UTF-8.

    Raises ValueError where the document is invalid, or where a value is longer than MAX_OBJECT_BYTES.
    """
    bounded = _Bounded(stream)
    try:
        for value in ijson.items(bounded, prefix, use_float=True, buf_size=BUFFER_BYTES):
            bounded.since_row = 0
            yield value
    except (ijson.JSONError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error


class _Bounded:
    """A stream of which at most MAX_OBJECT_BYTES are read for one row."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.since_row = 0
        """Number of bytes that were read since the last row."""

    def read(self, size: int = -1) -> bytes:
        data: Any = self._stream.read(size)
        self.since_row += len(data)
        if self.since_row > MAX_OBJECT_BYTES + BUFFER_BYTES:
            raise ValueError(f"an object of more than {MAX_OBJECT_BYTES:,} bytes")
        return bytes(data)
