"""The clusters table as files: Parquet for programs, CSV for spreadsheets."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.reporting.tables.manifest import loss_column
from pipeline.storage import Storage, scratch_folder

ROWS_PER_GROUP = 65_536
"""Most rows of a row group."""
ROWS_AT_ONCE = 10_000
"""Rows of a spreadsheet that are in memory as text."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a cell must not begin with: spreadsheets would compute what a stranger wrote in a caption."""


def write_clusters_parquet(storage: Storage, key: str, clusters: pa.Table) -> None:
    """Publish `clusters`, as `manifest.clusters_table` made it, as zstd-compressed Parquet.

    A row group holds images of one cluster alone, so a reader that asks for one cluster skips all others by their
    statistics; and since rows are sorted by loss within it, the best images are in its first pages.
    """
    schema = clusters.schema
    order = [pq.SortingColumn(schema.get_field_index(name)) for name in ("cluster", loss_column(schema))]
    with scratch_folder() as folder:
        path = folder / "clusters.parquet"
        with pq.ParquetWriter(path, schema, compression="zstd", sorting_columns=order, write_page_index=True) as writer:
            for start, end in _cluster_ranges(clusters):
                writer.write_table(clusters.slice(start, end - start), row_group_size=ROWS_PER_GROUP)
        storage.publish(path, key)


def write_clusters_csv(storage: Storage, key: str, clusters: pa.Table) -> None:
    """Publish `clusters` as CSV: UTF-8 with a byte order mark, which spreadsheets look for; no lists of parameters.

    Times are ISO 8601 in UTC, hashtags are joined by spaces. A text that a spreadsheet would take for a formula begins
    with an apostrophe.
    """
    names = [field.name for field in clusters.schema if field.name == "hashtags" or not pa.types.is_list(field.type)]
    first = ["cluster", "image_id", loss_column(clusters.schema)]
    names = [*first, *(name for name in names if name not in first)]
    with scratch_folder() as folder:
        path = folder / "clusters.csv"
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            for batch in clusters.select(names).to_batches(max_chunksize=ROWS_AT_ONCE):
                writer.writerows(
                    zip(*([_cell(value) for value in column.to_pylist()] for column in batch), strict=True)
                )
        storage.publish(path, key)


def _cluster_ranges(clusters: pa.Table) -> Iterator[tuple[int, int]]:
    """First row and end of each cluster that has images."""
    ends = np.flatnonzero(np.diff(clusters["cluster"].to_numpy(), append=-1)) + 1
    yield from zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True) if len(ends) else ()


def _cell(value: Any) -> str:
    """`value` as it stands in a spreadsheet."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        value = " ".join(tag for tag in value if tag)
    text = str(value if isinstance(value, str) else value.isoformat()).replace("\0", "")
    return "'" + text if text.startswith(FORMULA) else text
