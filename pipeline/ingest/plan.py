"""The plan of a crawl: every record, in a fixed order, cut into shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest.forget.names import NO_NAMES, Names, are_forgotten, cleared, names_in
from pipeline.records import PLAN_SCHEMA, CrawlRecord
from pipeline.storage import local_writes

ROW_GROUP_RECORDS = 16_384
"""Of a row group, at least, unless the plan ends: it holds whole shards. Parquet keeps a description of each row group
in memory, so that groups of one small shard would make the plan of a large crawl grow with it."""

BATCH_RECORDS = 1_024
"""Records that are Python objects at once; the others of a row group are in Arrow's tighter form."""

SHARD_KEY = b"records_per_shard"

NOT_IDENTITY = frozenset({"source_uri", "problem_detail"})
"""Where a record lies, and what is only words, do not tell one state of it from another."""

# Made once: json.dumps makes an encoder for each call with options.
_IDENTITY = json.JSONEncoder(sort_keys=True, default=str)
_EXTRA = json.JSONEncoder(ensure_ascii=False, sort_keys=True)


class Plan:
    """A plan in a local Parquet file, whose row groups hold whole shards in order."""

    def __init__(self, path: Path, listing_digest: str) -> None:
        self.path = path
        self.listing_digest = listing_digest
        """Hexadecimal; changes when a name, a size or the metadata of any record does, but not when the crawl moves."""
        self._file = pq.ParquetFile(path)
        self._per_shard = int(self._file.metadata.metadata[SHARD_KEY])
        self._per_group = _shards_per_group(self._per_shard) * self._per_shard
        self._group: tuple[int, pa.Table] | None = None
        self.records: int = self._file.metadata.num_rows
        self.n_shards: int = -(-self.records // self._per_shard)

    def records_of(self, shard: int) -> pa.Table:
        """The records of one shard, with PLAN_SCHEMA; fast where shards are asked for in order."""
        group, start = divmod(shard * self._per_shard, self._per_group)
        if self._group is None or self._group[0] != group:
            self._group = group, self._file.read_row_group(group)
        # A copy, so that a task is sent its records and not the group's.
        return self._group[1].slice(start, self._per_shard).take(list(range(self.size_of(shard))))

    def size_of(self, shard: int) -> int:
        """Number of records of one shard."""
        return min(self._per_shard, self.records - shard * self._per_shard)


def write_plan(records: Iterable[CrawlRecord], path: Path, records_per_shard: int, forgotten: Names = NO_NAMES) -> Plan:
    """Stream `records` into the local file `path`, cut into shards of `records_per_shard` (the last one: the rest).

    Of records whose address is `forgotten` nothing but their place is written; the digest of the listing stays.
    """
    listing = hashlib.sha256()
    position = 0
    stream = iter(records)
    per_group = _shards_per_group(records_per_shard) * records_per_shard
    with local_writes(path), _writer(path) as writer:
        group: list[pa.Table] = []
        room = per_group
        while batch := list(islice(stream, min(BATCH_RECORDS, room))):
            for record in batch:
                listing.update(_identity(record))
            rows = [_row(position + i, record) for i, record in enumerate(batch)]
            table = pa.Table.from_pylist(rows, PLAN_SCHEMA)
            group.append(cleared(table, are_forgotten(table, forgotten)))
            position += len(rows)
            room -= len(rows)
            if not room:
                writer.write_table(pa.concat_tables(group), row_group_size=per_group)
                group, room = [], per_group
        if group:
            writer.write_table(pa.concat_tables(group), row_group_size=per_group)
        writer.add_key_value_metadata({SHARD_KEY: str(records_per_shard)})
    return Plan(path, listing.hexdigest())


def write_without(plan: Path | pa.NativeFile, path: Path, records: Collection[int], names: Names) -> set[str]:
    """Write `plan` to the local file `path` without the `records` at these places, and without what is in `names`.

    Returns the names that were in `plan` and are no longer. Memory holds a row group at a time.
    """
    removed: set[str] = set()
    with pq.ParquetFile(plan) as file, local_writes(path), _writer(path) as writer:
        for i in range(file.num_row_groups):
            group = file.read_row_group(i)
            forgotten = np.isin(group["record"].to_numpy(), list(records)) | are_forgotten(group, names)
            removed |= names_in(group.filter(pa.array(forgotten)))
            writer.write_table(cleared(group, forgotten), row_group_size=group.num_rows)
        writer.add_key_value_metadata({SHARD_KEY: file.metadata.metadata[SHARD_KEY]})
    return removed


def _writer(path: Path) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, PLAN_SCHEMA, compression="zstd", write_statistics=False)


def _shards_per_group(records_per_shard: int) -> int:
    return -(-ROW_GROUP_RECORDS // records_per_shard)


def _row(position: int, record: CrawlRecord) -> dict[str, Any]:
    extra = _EXTRA.encode(record.extra) if record.extra else None
    return {**vars(record), "record": position, "extra": extra}


def _identity(record: CrawlRecord) -> bytes:
    known = {name: value for name, value in vars(record).items() if name not in NOT_IDENTITY}
    return _IDENTITY.encode(known).encode()
