"""Read the rows of CSV and TSV tables one at a time, in constant memory.

A quote that is never closed, or that is closed by another stray quote many rows later, costs no row: the line in which
it stands is then read without quoting, and the lines after it are read as if it did not exist.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipeline.ingest.sources.tables.lookahead import Lookahead
from pipeline.ingest.sources.tables.rows import BrokenRow, NotATable, Row
from pipeline.ingest.sources.tables.text_lines import Line, text_lines

MAX_ROW_LINES = 1_000
"""Maximum number of lines of a CSV row, whose quoted fields may contain line breaks."""

MAX_ROW_CHARS = 2**20
"""Maximum length of a CSV row in characters."""

MAX_LINES_AGAIN = 32
"""Maximum number of lines after a stray quote that are read again as rows of several lines. If there are more, each of
them is a row, so that the time to read a hostile table is proportional to its length."""

SAMPLE_LINES = 50
"""Number of lines from which the delimiter is determined."""

DELIMITERS = ",;\t|"

FURTHER_CELLS = "further_cells"
"""Column for the cells of a row beyond the last column name."""

_ADDRESS = re.compile(r"\s*https?://", re.IGNORECASE)
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)


def csv_rows(stream: BinaryIO, encoding: str | None = None) -> Iterator[Row]:
    """Yield the rows of a CSV with a header.

    The delimiter is the one that a first line such as ``sep=;`` names, or else the one of ``,;|`` and the tab by which
    the header has several columns and most rows have as many.

    Raises NotATable where the header is missing, or where the encoding cannot be detected.
    """
    lines = _Lines(text_lines(stream, encoding))
    if named := _SEPARATOR_LINE.fullmatch("".join(lines.ahead(1))):
        next(lines)
        lines.take()
    yield from _Table(lines, named[1] if named else _delimiter(lines.ahead(SAMPLE_LINES)), True).rows()


def tsv_rows(stream: BinaryIO, encoding: str | None = None) -> Iterator[Row]:
    """Yield the rows of a table with a header, separated by tabs.

    Quotes are text, because this format has no quoting; unless all column names are quoted, as some programs write it.

    Raises NotATable as `csv_rows` does.
    """
    lines = _Lines(text_lines(stream, encoding))
    header = "".join(lines.ahead(1)).rstrip("\r\n").split("\t")
    quoted = all(len(name) > 1 and name.startswith('"') and name.endswith('"') for name in header)
    yield from _Table(lines, "\t", quoted).rows()


class _UnreadableLine(csv.Error):
    """The next line cannot be read."""


class _Lines(Iterator[str]):
    """The lines of a table for `csv.reader`, with those of the row that is being read."""

    def __init__(self, source: Iterator[Line]) -> None:
        self._source = Lookahead(source)
        self._row: list[str] = []
        self._row_chars = 0
        self.number = 0
        """Number of the line that was returned last, from 1."""

    def ahead(self, count: int) -> list[str]:
        """Return the readable ones of the next `count` lines without consuming them."""
        return [line for line in self._source.ahead(count) if isinstance(line, str)]

    def __next__(self) -> str:
        line = next(self._source, None)
        if line is None:
            if self._row:
                raise csv.Error("a quote is never closed")
            raise StopIteration
        if isinstance(line, BrokenRow):
            if self._row:  # the row before it is broken, too, and is reported first
                self._source.put_back([line])
                raise csv.Error("a quote is not closed before a line that cannot be read")
            self.number += 1
            raise _UnreadableLine(line.reason)
        self.number += 1
        self._row.append(line)
        self._row_chars += len(line)
        if self._row_chars > MAX_ROW_CHARS or len(self._row) > MAX_ROW_LINES:
            raise csv.Error(f"a quote is not closed within {MAX_ROW_LINES:,} lines or {MAX_ROW_CHARS:,} characters")
        return line

    def take(self) -> list[str]:
        """Return the lines since the last call: those of one row."""
        row, self._row, self._row_chars = self._row, [], 0
        return row

    def put_back(self, lines: list[str]) -> None:
        """Let `lines`, which were returned last, come again."""
        self._source.put_back(list(lines))
        self.number -= len(lines)


class _Table:
    """A delimited table that is being read."""

    def __init__(self, lines: _Lines, delimiter: str, quoted: bool) -> None:
        self._lines = lines
        self._format: Any = {"delimiter": delimiter, "quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE}
        self._names: list[str] = []

    def rows(self) -> Iterator[Row]:
        while (group := self._next_row()) is not None:
            for number, cells in group:
                if isinstance(cells, BrokenRow):
                    if not self._names:
                        raise NotATable(f"the line of column names cannot be read ({cells.reason})")
                    yield number, cells
                elif cells and not self._names:
                    self._names = self._column_names(cells)
                elif cells:
                    yield number, self._by_name(cells)
        if not self._names:
            raise NotATable("the file is empty; expected a line of column names")

    def _next_row(self) -> list[tuple[int, list[str] | BrokenRow]] | None:
        """Read the next row; return its number and cells. None at the end.

        A row with a stray quote gives several: one for each line that cannot be part of it.
        """
        try:
            cells = next(csv.reader(self._lines, **self._format), None)
        except _UnreadableLine as error:
            return [(self._lines.number, BrokenRow(str(error)))]
        except csv.Error as error:
            if not self._names:
                return [(1, BrokenRow(str(error)))]
            return self._one_by_one(self._lines.take())
        if cells is None:
            return None
        lines = self._lines.take()
        if len(lines) > 1 and self._names and self._has_stray_quote(cells, lines):
            if len(lines) > MAX_LINES_AGAIN:
                return self._one_by_one(lines)
            self._lines.put_back(lines[1:])
            lines, cells = lines[:1], self._literally(lines[0])
        return [(self._lines.number - len(lines) + 1, cells)]

    def _has_stray_quote(self, cells: list[str], lines: list[str]) -> bool:
        """Return whether the row `cells` of several `lines` is rather several rows: its first quote is part of a text.

        Then its first line and a further one are rows by themselves, with an address in the same column. Where the row
        as a whole is valid, too, all further lines must be such rows.
        """
        columns = _address_columns(self._literally(lines[0]))
        if not columns:
            return False
        alone = (self._alone(line) for line in lines[1:])
        are_rows = [
            not isinstance(row, BrokenRow) and len(row) == len(self._names) and bool(columns & _address_columns(row))
            for row in alone
        ]
        try:
            valid = len(next(csv.reader(lines, strict=True, **self._format))) == len(self._names)
        except csv.Error:
            valid = False
        return all(are_rows) if valid and len(cells) == len(self._names) else any(are_rows)

    def _one_by_one(self, lines: list[str]) -> list[tuple[int, list[str] | BrokenRow]]:
        first = self._lines.number - len(lines) + 1
        return [(first + i, self._alone(line)) for i, line in enumerate(lines)]

    def _alone(self, line: str) -> list[str] | BrokenRow:
        """Return the cells of a row of one line; a quote that this line does not close is text."""

        def only_line() -> Iterator[str]:
            yield line
            raise csv.Error("a quote is not closed")

        try:
            return next(csv.reader(only_line(), **self._format), [])
        except csv.Error:
            pass
        try:
            return self._literally(line)
        except csv.Error as error:
            return BrokenRow(str(error))

    def _literally(self, line: str) -> list[str]:
        """Return the cells of a row of one line, with quotes as text."""
        return next(csv.reader([line], delimiter=self._format["delimiter"], quoting=csv.QUOTE_NONE), [])

    def _column_names(self, cells: list[str]) -> list[str]:
        if any(_ADDRESS.match(cell) for cell in cells):
            raise NotATable("the first line contains an address; expected a line of column names, such as url,caption")
        if cells[0].lstrip().lower().startswith(("<!doctype", "<html", "<?xml")):
            raise NotATable("a web page or XML; expected a line of column names, such as url,caption")
        names: list[str] = []
        if self._has_index(len(cells)):
            cells = ["", *cells]
        for number, cell in enumerate(cells, start=1):
            name = cell.strip()[:200] or f"column_{number}"
            names.append(name if name not in names else f"{name}_{number}")
        return names

    def _has_index(self, width: int) -> bool:
        """Return whether the rows begin with an index, for which the header with `width` columns has no name."""
        rows = [row for line in self._lines.ahead(SAMPLE_LINES) if (row := self._alone(line))]
        return bool(rows) and all(not isinstance(row, BrokenRow) and len(row) == width + 1 and row[-1] for row in rows)

    def _by_name(self, cells: list[str]) -> dict[str, Any]:
        row: dict[str, Any] = dict(zip(self._names, cells, strict=False))
        if any(further := cells[len(self._names) :]):
            row[FURTHER_CELLS] = further
        return row


def _address_columns(cells: list[str]) -> set[int]:
    return {i for i, cell in enumerate(cells) if _ADDRESS.match(cell)}


def _delimiter(lines: list[str]) -> str:
    """Return the delimiter by which the first of `lines` has several cells and most of the others have as many."""

    def fit(delimiter: str) -> tuple[float, int]:
        try:
            rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
        except csv.Error:
            return 0.0, 0
        width = len(rows[0]) if rows else 0
        return (sum(len(row) == width for row in rows) / len(rows), width) if width > 1 else (0.0, 0)

    return max(DELIMITERS, key=fit)
