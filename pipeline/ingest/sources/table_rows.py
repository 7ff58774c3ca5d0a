"""Read the rows of tables one at a time: CSV, TSV, JSON lines, plain lists and Parquet, in constant memory.

A row that cannot be read becomes a `BrokenRow`, and the rows after it are read as if it did not exist: an unmatched
quote costs one line, not the rest of the file.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest.sources.metadata import parse_json

MAX_LINE_BYTES = 2**20
"""Maximum length of a line in bytes; longer ones are broken rows."""

MAX_ROW_LINES = 1_000
"""Maximum number of lines of a CSV row, whose quoted fields may contain line breaks."""

MAX_ROW_CHARS = 2**20
"""Maximum length of a CSV row in characters."""

BATCH_ROWS = 1_024
"""Number of rows of a Parquet table that are decoded together."""

PARQUET_BUFFER_BYTES = 2**18
"""Number of bytes that are read at once from each column of a Parquet table."""

FURTHER_CELLS = "further_cells"
"""Column for the cells of a CSV row beyond the last column name."""


class NotATable(Exception):  # noqa: N818 (describes a state, as Rejected does)
    """The file as a whole is not a table of the expected format."""


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A row that cannot be read."""

    reason: str


Row = tuple[int, dict[str, Any] | BrokenRow]
"""Number of the row, or of its line in a text file, from 1; and its values by column."""

Reader = Callable[[BinaryIO], Iterator[Row]]
"""Function that yields the rows of the table in a stream."""


def csv_rows(stream: BinaryIO) -> Iterator[Row]:
    """Yield the rows of a CSV with a header. The separator is a comma, semicolon or tab, as detected in the header.

    Raises NotATable where the header is missing.
    """
    lines = _RowLines(stream)
    lines.delimiter = _delimiter(lines.peek())
    yield from _delimited_rows(lines)


def tsv_rows(stream: BinaryIO) -> Iterator[Row]:
    """Yield the rows of a table with a header, separated by tabs. Raises NotATable as `csv_rows` does."""
    lines = _RowLines(stream)
    lines.delimiter = "\t"
    yield from _delimited_rows(lines)


def json_rows(stream: BinaryIO) -> Iterator[Row]:
    """Yield the rows of a file with one JSON object per line; empty lines are ignored."""
    for number, line in enumerate(_bounded_lines(stream), start=1):
        if line is None:
            yield number, BrokenRow(f"a line of more than {MAX_LINE_BYTES} bytes")
        elif stripped := line.strip():
            try:
                row = parse_json(stripped)
            except ValueError as error:
                yield number, BrokenRow(f"not JSON ({error})")
                continue
            yield number, row if isinstance(row, dict) else BrokenRow(f"a JSON {type(row).__name__}, not an object")


def list_rows(stream: BinaryIO) -> Iterator[Row]:
    """Yield rows with the column ``url`` from a file with one address per line.

    Empty lines, and lines that start with #, are ignored.
    """
    for number, line in enumerate(_bounded_lines(stream), start=1):
        if line is None:
            yield number, BrokenRow(f"a line of more than {MAX_LINE_BYTES} bytes")
        elif (stripped := line.strip()) and not stripped.startswith(b"#"):
            yield number, {"url": stripped.decode("utf-8", "surrogateescape")}


def parquet_rows(stream: BinaryIO) -> Iterator[Row]:
    """Yield the rows of a Parquet table, without its binary columns.

    After a broken page, the rest of its row group is one broken row. Raises NotATable where the file is not Parquet.
    """
    number = 0
    try:
        file = pq.ParquetFile(stream, buffer_size=PARQUET_BUFFER_BYTES, pre_buffer=False)
        names = [field.name for field in file.schema_arrow if not _is_binary(field.type)]
    except (pa.ArrowException, ValueError, OSError) as error:
        _raise_system_error(error)
        raise NotATable(f"not a Parquet table ({error})") from error
    for group in range(file.num_row_groups if names else 0):
        last = number + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=names, use_threads=False):
                for row in _python_rows(batch):
                    number += 1
                    yield number, row
        except (pa.ArrowException, ValueError, OSError) as error:
            _raise_system_error(error)
            yield number + 1, BrokenRow(f"the remaining {last - number} rows of the row group are broken ({error})")
            number = max(number, last)


class _RowLines(Iterator[str]):
    """The lines of a text file, for `csv.reader`.

    The lines of the row that is being read are kept, so that all but the first can be read again if the row is broken.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._source = _bounded_lines(stream)
        self._lookahead: deque[str | None] = deque()
        self._row_lines: list[str] = []
        self._row_chars = 0
        self._started = False
        self.number = 0
        """Number of the line that was returned last, from 1."""
        self.delimiter = ","

    def peek(self) -> str | None:
        """Return the next line without consuming it; empty at the end, None if it is too long."""
        if not self._lookahead:
            self._lookahead.append(self._read())
        return self._lookahead[0]

    def __next__(self) -> str:
        line = self.peek()
        if line == "":
            if self._row_lines:
                raise csv.Error("a quote is never closed")
            raise StopIteration
        self._lookahead.popleft()
        if line is None:
            if self._row_lines:  # the row before it is broken, too, and is reported first
                self._lookahead.appendleft(None)
            else:
                self.number += 1
            raise csv.Error(f"a line of more than {MAX_LINE_BYTES} bytes")
        self.number += 1
        self._row_lines.append(line)
        self._row_chars += len(line)
        if self._row_chars > MAX_ROW_CHARS or len(self._row_lines) > MAX_ROW_LINES:
            raise csv.Error(f"a quote is not closed within {MAX_ROW_LINES} lines or {MAX_ROW_CHARS} characters")
        return line

    def finish_row(self) -> int:
        """Mark the lines since the last row as one complete row; return the number of its first line."""
        first = self.number - len(self._row_lines) + 1
        self._row_lines.clear()
        self._row_chars = 0
        return first

    def skip_broken_line(self) -> int:
        """Skip the first line of a broken row and return its number; the other lines of the row are read again."""
        skipped = self.number - max(len(self._row_lines), 1) + 1
        self._lookahead.extendleft(reversed(self._row_lines[1:]))
        self.number = skipped
        self._row_lines.clear()
        self._row_chars = 0
        return skipped

    def _read(self) -> str | None:
        line = next(self._source, b"")
        if line is None:
            return None
        if not self._started:
            self._started = True
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise NotATable("encoded in UTF-16; expected UTF-8")
            line = line.removeprefix(b"\xef\xbb\xbf")
        return line.decode("utf-8", "surrogateescape")


def _delimited_rows(lines: _RowLines) -> Iterator[Row]:
    names: list[str] | None = None
    while True:
        reader = csv.reader(lines, delimiter=lines.delimiter)
        try:
            for cells in reader:
                number = lines.finish_row()
                if not cells:
                    continue
                if names is None:
                    names = _column_names(cells)
                    continue
                row: dict[str, Any] = dict(zip(names, cells, strict=False))
                if len(cells) > len(names):
                    row[FURTHER_CELLS] = cells[len(names) :]
                yield number, row
            break
        except csv.Error as error:
            number = lines.skip_broken_line()
            if names is None:
                raise NotATable(f"the line of column names cannot be read ({error})") from error
            yield number, BrokenRow(str(error))
    if names is None:
        raise NotATable("the file is empty; expected a line of column names")


def _column_names(cells: list[str]) -> list[str]:
    if any(cell.strip().lower().startswith(("http://", "https://")) for cell in cells):
        raise NotATable("the first line contains an address; expected a line of column names, such as url,caption")
    names: list[str] = []
    for number, cell in enumerate(cells, start=1):
        name = cell.strip()[:200] or f"column_{number}"
        names.append(name if name not in names else f"{name}_{number}")
    return names


def _delimiter(line: str | None) -> str:
    names = line or ""
    return next((mark for mark in ",;\t" if mark in names), ",")


def _bounded_lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Yield the lines of `stream`; None for a line above MAX_LINE_BYTES, which is never in memory as a whole."""
    while line := stream.readline(MAX_LINE_BYTES):
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def _python_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield the rows of `batch`; values that Python cannot represent, such as a time in the year 20000, are None."""
    try:
        yield from batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        columns = {name: [_python_value(v) for v in batch.column(i)] for i, name in enumerate(batch.schema.names)}
        yield from ({name: values[i] for name, values in columns.items()} for i in range(batch.num_rows))


def _python_value(value: Any) -> Any:
    try:
        return value.as_py()
    except (pa.ArrowException, ValueError, OverflowError):
        return None


def _is_binary(arrow_type: Any) -> bool:
    types = pa.types
    return bool(
        types.is_binary(arrow_type) or types.is_large_binary(arrow_type) or types.is_fixed_size_binary(arrow_type)
    )


def _raise_system_error(error: BaseException) -> None:
    """Re-raise `error` if it comes from the operating system; errors of Arrow itself have no error number."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
