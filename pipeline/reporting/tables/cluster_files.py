"""The clusters table as files: Parquet for programs, CSV for spreadsheets."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.reporting.tables.manifest import loss_column
from pipeline.storage import Storage, scratch_folder

ROWS_PER_GROUP = 65_536
"""Maximum number of rows of a row group."""
ROWS_AT_ONCE = 10_000
"""Number of rows of the CSV file that are converted to text at once."""
FORMULA = re.compile(r"^(?=[=+\-@\t\r\n＝＋－＠])|[;|\t\r\n] *(?=[=+\-@＝＋－＠])")
"""The place before a character that makes a spreadsheet evaluate a cell as a formula, which captions of strangers must
not do. Where a spreadsheet separates cells by another character than the comma, a cell may begin within a caption."""


def write_clusters_parquet(storage: Storage, key: str, clusters: pa.Table) -> None:
    """Publish `clusters` (see `manifest.clusters_table`) as zstd-compressed Parquet.

    Each row group contains images of one cluster only, so a query for one cluster skips the others by their
    statistics. Rows are sorted by loss within a cluster, so its best images are in the first pages.
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
    """Publish `clusters` as CSV, without the transformation parameters.

    The encoding is UTF-8 with a byte order mark, by which spreadsheets recognise it. Times are ISO 8601 in UTC, and
    hashtags are joined by spaces. An apostrophe precedes what a spreadsheet would
    evaluate as a formula.
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
    """Yield the first row and the end of each cluster that has images."""
    ends = np.flatnonzero(np.diff(clusters["cluster"].to_numpy(), append=-1)) + 1
    yield from zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True) if len(ends) else ()


def _cell(value: Any) -> str:
    """Return `value` as the text of a cell."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        value = " ".join(tag for tag in value if tag)
    text = str(value if isinstance(value, str) else value.isoformat()).replace("\0", "")
    return FORMULA.sub(lambda match: match[0] + "'", text)
