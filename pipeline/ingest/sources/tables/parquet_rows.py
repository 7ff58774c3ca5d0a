"""Read the rows of Parquet tables one at a time, in memory that a hostile table cannot exceed.

A few bytes of Parquet can stand for gigabytes: dictionaries repeat a long text for every row, run lengths repeat a
value millions of times, and pages are compressed. Therefore the sizes in the metadata are compared with bounds before
anything is decoded, texts are decoded as dictionaries, and long values are cut before they become Python objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.console import say
from pipeline.ingest.sources.metadata import MAX_ITEMS, MAX_TEXT_CHARS
from pipeline.ingest.sources.tables.parquet_sizes import columns_too_large
from pipeline.ingest.sources.tables.rows import BrokenRow, NotATable, Row

BATCH_ROWS = 1_024
"""Number of rows that are decoded together."""

BUFFER_BYTES = 2**18
"""Number of bytes that are read at once from each column."""

MAX_TEXT_BYTES = 4 * MAX_TEXT_CHARS
"""Maximum number of bytes of a text; the rest is cut off."""


def parquet_rows(stream: BinaryIO, encoding: str | None = None) -> Iterator[Row]:
    """Yield the rows of a Parquet table. Binary values are texts if they are UTF-8, and None otherwise.

    Columns above the bounds of this module are left out, with a word on the console. After a broken page, the rest of
    its row group is one broken row.

    Raises NotATable where the file is not Parquet.
    """
    number = 0
    try:
        file = pq.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False)
        names = _columns_within_bounds(stream, file.schema_arrow.names)
        leaves = (file.metadata.schema.column(i) for i in range(file.metadata.num_columns))
        texts = [leaf.path for leaf in leaves if _is_text(leaf)]
        stream.seek(0)
        file = pq.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False, read_dictionary=texts)
    except _ARROW_ERRORS as error:
        _raise_system_error(error)
        raise NotATable(f"not a Parquet table ({error})") from error
    for group in range(file.num_row_groups if names else 0):
        last = number + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=names, use_threads=False):
                for row in _python_rows(batch):
                    number += 1
                    yield number, row
        except _ARROW_ERRORS as error:
            _raise_system_error(error)
            yield number + 1, BrokenRow(f"the remaining {last - number} rows of the row group are broken ({error})")
            number = max(number, last)


_ARROW_ERRORS = (pa.ArrowException, ValueError, TypeError, OverflowError, OSError)
"""Exceptions that Arrow raises for broken files."""


def _columns_within_bounds(stream: BinaryIO, names: list[str]) -> list[str]:
    """Return those of the column `names` of the table in `stream` that can be decoded within bounds."""
    excluded = columns_too_large(stream)
    for name, reason in excluded.items():
        if reason:
            say("ingest", f"the column {name[:200]!r} of a Parquet table is left out: {reason}")
    return [name for name in names if name.partition(".")[0] not in excluded]


def _is_text(leaf: Any) -> bool:
    """Return whether a leaf column holds texts, or bytes that may be texts; these can be read as dictionaries."""
    return leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type != "DECIMAL"


def _python_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield the rows of `batch`; values that Python cannot represent, such as a time in the year 20000, are None."""
    columns = {name: _python_values(batch.column(i)) for i, name in enumerate(batch.schema.names)}
    yield from ({name: values[i] for name, values in columns.items()} for i in range(batch.num_rows))


def _python_values(column: pa.Array) -> list[Any]:
    """Return the values of `column`: of texts at most MAX_TEXT_CHARS characters, of lists at most MAX_ITEMS items.

    Equal texts of a dictionary are one object, however often they occur.
    """
    types = pa.types
    if types.is_dictionary(column.type):
        used = column.indices.drop_null().unique()
        texts = map(_text, _cut(column.dictionary.take(used)).to_pylist())
        by_index = dict(zip(used.to_pylist(), texts, strict=True))
        return [by_index.get(index) for index in column.indices.to_pylist()]
    if types.is_map(column.type):
        column = column.cast(pa.list_(pa.struct([("key", column.type.key_type), ("value", column.type.item_type)])))
    if types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type):
        column = pc.list_slice(column, 0, MAX_ITEMS, return_fixed_size_list=False)
        items = iter(_python_values(column.flatten()))
        lengths = pc.list_value_length(column).to_pylist()
        return [None if length is None else list(islice(items, length)) for length in lengths]
    if types.is_struct(column.type):
        names = [field.name for field in column.type]
        fields = [_python_values(column.field(i)) for i in range(len(names))]
        valid = column.is_valid().to_pylist()
        return [dict(zip(names, row, strict=True)) if v else None for v, *row in zip(valid, *fields, strict=True)]
    try:
        values = column.to_pylist()
    except _ARROW_ERRORS:
        values = [_python_value(value) for value in column]
    return [_text(value) for value in values]


def _cut(texts: pa.Array) -> pa.Array:
    """Return `texts`, binary or not, with at most MAX_TEXT_BYTES each."""
    if (pc.max(pc.binary_length(texts)).as_py() or 0) <= MAX_TEXT_BYTES:
        return texts
    return pc.binary_slice(texts.cast(pa.binary()), 0, MAX_TEXT_BYTES)


def _text(value: Any) -> Any:
    """Return bytes as text, None unless they are UTF-8; and other values unchanged.

    `_cut` may have split the last character.
    """
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8", "ignore" if len(value) == MAX_TEXT_BYTES else "strict")
    except UnicodeDecodeError:
        return None


def _python_value(value: Any) -> Any:
    try:
        return value.as_py()
    except _ARROW_ERRORS:
        return None


def _raise_system_error(error: BaseException) -> None:
    """Re-raise `error` if it comes from the operating system; errors of Arrow itself have no error number."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
