"""Rows of tables, one at a time: CSV, TSV, JSON lines, plain lists and Parquet; memory does not grow with the table.

A row that cannot be read is `Broken`, and the rows after it are read as if it had not been there: a lone quote costs
its own line, not the rest of the file.
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
"""Of one line; longer ones are broken rows."""

MAX_ROW_LINES = 1_000
"""Of one row of a CSV, whose quoted fields may hold line breaks."""

MAX_ROW_CHARS = 2**20
"""Of one row of a CSV."""

BATCH_ROWS = 1_024
"""Of a Parquet table, decoded together."""

PARQUET_BUFFER_BYTES = 2**18
"""Read at once from each column of a Parquet table."""

FURTHER_CELLS = "further_cells"
"""Where the cells of a CSV row go that no column name is for."""


class NoTable(Exception):  # noqa: N818 (says what, as Rejected does)
    """The whole file is not the table that it should be."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that cannot be read."""

    why: str


Row = tuple[int, dict[str, Any] | Broken]
"""Number of the row, or of its line in a text, from 1; and its values by column."""

Reader = Callable[[BinaryIO], Iterator[Row]]


def csv_rows(stream: BinaryIO) -> Iterator[Row]:
    """The rows of a table with a line of column names; separated by commas, or by ; or tabs where names are.

    Raises NoTable where there is no such line.
    """
    lines = _Lines(stream)
    lines.delimiter = _delimiter(lines.peek())
    yield from _separated(lines)


def tsv_rows(stream: BinaryIO) -> Iterator[Row]:
    """As `csv_rows`, separated by tabs."""
    lines = _Lines(stream)
    lines.delimiter = "\t"
    yield from _separated(lines)


def json_rows(stream: BinaryIO) -> Iterator[Row]:
    """JSON objects, one a line; empty lines are left out."""
    for number, line in enumerate(_bounded_lines(stream), start=1):
        if line is None:
            yield number, Broken(f"a line of more than {MAX_LINE_BYTES} bytes")
        elif stripped := line.strip():
            try:
                row = parse_json(stripped)
            except ValueError as error:
                yield number, Broken(f"not JSON ({error})")
                continue
            yield number, row if isinstance(row, dict) else Broken(f"a JSON {type(row).__name__}, not an object")


def list_rows(stream: BinaryIO) -> Iterator[Row]:
    """Addresses, one a line, as the column ``url``; empty lines and those that start with # are left out."""
    for number, line in enumerate(_bounded_lines(stream), start=1):
        if line is None:
            yield number, Broken(f"a line of more than {MAX_LINE_BYTES} bytes")
        elif (stripped := line.strip()) and not stripped.startswith(b"#"):
            yield number, {"url": stripped.decode("utf-8", "surrogateescape")}


def parquet_rows(stream: BinaryIO) -> Iterator[Row]:
    """The rows of a Parquet table, without its binary columns.

    After a broken page, the rest of its row group is one broken row. Raises NoTable where it is no Parquet table.
    """
    number = 0
    try:
        file = pq.ParquetFile(stream, buffer_size=PARQUET_BUFFER_BYTES, pre_buffer=False)
        names = [field.name for field in file.schema_arrow if not _is_binary(field.type)]
    except (pa.ArrowException, ValueError, OSError) as error:
        _raise_fault(error)
        raise NoTable(f"not a Parquet table ({error})") from error
    for group in range(file.num_row_groups if names else 0):
        last = number + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=names, use_threads=False):
                for row in _python_rows(batch):
                    number += 1
                    yield number, row
        except (pa.ArrowException, ValueError, OSError) as error:
            _raise_fault(error)
            yield number + 1, Broken(f"this and the rest of {last - number} rows are broken ({error})")
            number = max(number, last)


class _Lines(Iterator[str]):
    """The lines of a text, with those of the row that is being read kept: they can be given back."""

    def __init__(self, stream: BinaryIO) -> None:
        self._source = _bounded_lines(stream)
        self._ahead: deque[str | None] = deque()
        self._held: list[str] = []
        self._chars = 0
        self._started = False
        self.number = 0
        """Lines handed over so far."""
        self.delimiter = ","

    def peek(self) -> str | None:
        """The next line; empty at the end, None where it is too long."""
        if not self._ahead:
            self._ahead.append(self._read())
        return self._ahead[0]

    def __next__(self) -> str:
        line = self.peek()
        if line == "":
            if self._held:
                raise csv.Error("a quote that is never closed")
            raise StopIteration
        self._ahead.popleft()
        if line is None:
            if self._held:  # the row that runs into it is given up first
                self._ahead.appendleft(None)
            else:
                self.number += 1
            raise csv.Error(f"a line of more than {MAX_LINE_BYTES} bytes")
        self.number += 1
        self._held.append(line)
        self._chars += len(line)
        if self._chars > MAX_ROW_CHARS or len(self._held) > MAX_ROW_LINES:
            raise csv.Error("a quote that is not closed")
        return line

    def done(self) -> int:
        """The lines so far belong to a finished row; the number of its first."""
        first = self.number - len(self._held) + 1
        self._held.clear()
        self._chars = 0
        return first

    def give_up(self) -> int:
        """Only the first line of the row that is being read is lost; its number."""
        lost = self.number - max(len(self._held), 1) + 1
        self._ahead.extendleft(reversed(self._held[1:]))
        self.number = lost
        self._held.clear()
        self._chars = 0
        return lost

    def _read(self) -> str | None:
        line = next(self._source, b"")
        if line is None:
            return None
        if not self._started:
            self._started = True
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise NoTable("in UTF-16; expected UTF-8")
            line = line.removeprefix(b"\xef\xbb\xbf")
        return line.decode("utf-8", "surrogateescape")


def _separated(lines: _Lines) -> Iterator[Row]:
    names: list[str] | None = None
    while True:
        reader = csv.reader(lines, delimiter=lines.delimiter)
        try:
            for cells in reader:
                number = lines.done()
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
            number = lines.give_up()
            if names is None:
                raise NoTable(f"no line of column names ({error})") from error
            yield number, Broken(str(error))
    if names is None:
        raise NoTable("empty; expected a line of column names")


def _column_names(cells: list[str]) -> list[str]:
    if any(cell.strip().lower().startswith(("http://", "https://")) for cell in cells):
        raise NoTable("its first line holds an address; expected the names of the columns there, such as url,caption")
    names: list[str] = []
    for place, cell in enumerate(cells, start=1):
        name = cell.strip()[:200] or f"column_{place}"
        names.append(name if name not in names else f"{name}_{place}")
    return names


def _delimiter(line: str | None) -> str:
    names = line or ""
    return next((mark for mark in ",;\t" if mark in names), ",")


def _bounded_lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """The lines of `stream`; None in place of one that is too long, of which only a part is in memory."""
    while line := stream.readline(MAX_LINE_BYTES):
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def _python_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows of `batch`; a value that Python cannot hold, such as a time of the year 20000, is None."""
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


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _raise_fault(error: BaseException) -> None:
    """Raise `error` again where the machine, not the table, is at fault: Arrow's own errors have no number."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
