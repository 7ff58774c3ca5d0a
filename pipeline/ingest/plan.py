"""The plan of a crawl: every record, in a fixed order, cut into shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import PLAN_SCHEMA, CrawlRecord


class Plan:
    """A plan in a local Parquet file; row group i holds the records of shard i."""

    def __init__(self, path: Path, listing_digest: str) -> None:
        self.path = path
        self.listing_digest = listing_digest
        """Hexadecimal; changes when a name, a size or the metadata of any record does, but not when the crawl moves."""
        self._file = pq.ParquetFile(path)
        self.records: int = self._file.metadata.num_rows
        self.n_shards: int = self._file.num_row_groups

    def records_of(self, shard: int) -> pa.Table:
        """The records of one shard, with PLAN_SCHEMA."""
        return self._file.read_row_group(shard)

    def size_of(self, shard: int) -> int:
        """Number of records of one shard."""
        return int(self._file.metadata.row_group(shard).num_rows)


def write_plan(records: Iterable[CrawlRecord], path: Path, records_per_shard: int) -> Plan:
    """Stream `records` into the local file `path`, `records_per_shard` (the last shard: the rest) at a time."""
    listing = hashlib.sha256()
    position = 0
    stream = iter(records)
    with pq.ParquetWriter(path, PLAN_SCHEMA, compression="zstd") as writer:
        while group := list(islice(stream, records_per_shard)):
            for record in group:
                listing.update(_identity(record))
            rows = [_row(position + i, record) for i, record in enumerate(group)]
            writer.write_table(pa.Table.from_pylist(rows, PLAN_SCHEMA), row_group_size=len(rows))
            position += len(rows)
    return Plan(path, listing.hexdigest())


def _row(position: int, record: CrawlRecord) -> dict[str, Any]:
    extra = json.dumps(record.extra, ensure_ascii=False, sort_keys=True) if record.extra else None
    return {**vars(record), "record": position, "extra": extra}


def _identity(record: CrawlRecord) -> bytes:
    known = {name: value for name, value in vars(record).items() if name != "source_uri"}
    return json.dumps(known, sort_keys=True, default=str).encode()
