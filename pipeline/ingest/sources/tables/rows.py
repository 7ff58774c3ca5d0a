"""What the readers of tables yield: a row by the names of its columns, or why a row cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO


class NotATable(Exception):  # noqa: N818 (describes a state, as Rejected does)
    """The file as a whole is not a table of the expected format."""


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A row that cannot be read."""

    reason: str


Row = tuple[int, dict[str, Any] | BrokenRow]
"""Number of the row, or of its line in a text file, from 1; and its values by column."""

Reader = Callable[[BinaryIO, str | None], Iterator[Row]]
"""Function that yields the rows of the table in a stream; the second argument names the encoding of a text file, None
if it is to be detected."""
