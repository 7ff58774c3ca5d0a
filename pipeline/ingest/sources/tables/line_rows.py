"""Read the rows of files with one row per line: JSON objects, or addresses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from pipeline.ingest.sources.metadata import parse_json
from pipeline.ingest.sources.tables.rows import BrokenRow, Row
from pipeline.ingest.sources.tables.text_lines import text_lines


def json_rows(stream: BinaryIO, encoding: str | None = None) -> Iterator[Row]:
    """Yield the rows of a file with one JSON object per line; empty lines are ignored."""
    for number, line in enumerate(text_lines(stream, encoding), start=1):
        if isinstance(line, BrokenRow):
            yield number, line
        elif stripped := line.strip():
            try:
                row = parse_json(stripped.encode())
            except ValueError as error:
                yield number, BrokenRow(f"not JSON ({error})")
                continue
            yield number, row if isinstance(row, dict) else BrokenRow(f"a JSON {type(row).__name__}, not an object")


def list_rows(stream: BinaryIO, encoding: str | None = None) -> Iterator[Row]:
    """Yield rows with the column ``url`` from a file with one address per line.

    Empty lines, and lines that start with #, are ignored.
    """
    for number, line in enumerate(text_lines(stream, encoding), start=1):
        if isinstance(line, BrokenRow):
            yield number, line
        elif (stripped := line.strip()) and not stripped.startswith("#"):
            yield number, {"url": stripped}
