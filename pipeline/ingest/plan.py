"""The plan of a crawl: all of its records in a fixed order, divided into shards."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SourceError
from pipeline.records import PLAN_SCHEMA, CrawlRecord
from pipeline.storage import local_writes

ROW_GROUP_RECORDS = 16_384
"""Minimum number of records in a row group, except for the last one. A row group holds whole shards. Parquet keeps a
description of each row group in memory, so that row groups of single small shards would add up in a large crawl."""

BATCH_RECORDS = 1_024
"""Maximum number of records held as Python objects at once; the rest of a row group is in Arrow's compact form."""

SHARD_KEY = b"records_per_shard"
"""Key of the number of records per shard in the metadata of the Parquet file."""

NOT_IDENTITY = frozenset({"source_uri", "problem_detail"})
"""Fields that the digest of the listing leaves out: the location of the record, and an explanation for the user."""

# json.dumps would build a new encoder for every call that has options.
_identity_encoder = json.JSONEncoder(sort_keys=True, default=str)
_extra_encoder = json.JSONEncoder(ensure_ascii=False, sort_keys=True)


class Plan:
    """A plan in a local Parquet file. Its row groups hold whole shards, in order."""

    def __init__(self, path: Path, listing_digest: str) -> None:
        self.path = path
        self.listing_digest = listing_digest
        """Digest of the listing, in hexadecimal. It changes with the name, the size or the metadata of any record, but
        not when the crawl is moved to another location."""
        self._file = pq.ParquetFile(path)
        self._per_shard = int(self._file.metadata.metadata[SHARD_KEY])
        self._per_group = _shards_per_group(self._per_shard) * self._per_shard
        self._group: tuple[int, pa.Table] | None = None
        self.records: int = self._file.metadata.num_rows
        self.n_shards: int = -(-self.records // self._per_shard)

    def records_of(self, shard: int) -> pa.Table:
        """The records of one shard (PLAN_SCHEMA). Reading shards in order is fast: the latest row group is cached."""
        group, start = divmod(shard * self._per_shard, self._per_group)
        if self._group is None or self._group[0] != group:
            self._group = group, self._file.read_row_group(group)
        # `take` copies: a slice would make Ray send the whole row group to the task.
        return self._group[1].slice(start, self._per_shard).take(list(range(self.size_of(shard))))

    def size_of(self, shard: int) -> int:
        """Number of records of one shard."""
        return min(self._per_shard, self.records - shard * self._per_shard)


def draw_sample(records: Iterable[CrawlRecord], size: int, seed: int) -> list[CrawlRecord]:
    """Return a random sample of `size` records without replacement, in their original order.

    The records are read in one pass, and only the sample is held in memory. The choice depends only on `seed` and on
    the number of records. Records that will be rejected may be in the sample.

    Raises SourceError if there are fewer than `size` records.
    """

    def random_key(numbered: tuple[int, CrawlRecord]) -> bytes:
        return hashlib.sha256(f"{seed} {numbered[0]}".encode()).digest()

    drawn = heapq.nsmallest(size, enumerate(records), key=random_key)
    if len(drawn) < size:
        raise SourceError(
            f"ingest.sample: {size} is above the {len(drawn)} records of the source; omit it to ingest all records"
        )
    return [record for _, record in sorted(drawn, key=itemgetter(0))]


def write_plan(
    records: Iterable[CrawlRecord],
    path: Path,
    records_per_shard: int,
    clear: Callable[[pa.Table], pa.Table] = lambda rows: rows,
) -> Plan:
    """Stream `records` into the local file `path`, in shards of `records_per_shard`; the last shard has the rest.

    `clear` removes from rows of the plan what must not be stored; the digest of the listing still covers all records
    completely.
    """
    listing = hashlib.sha256()
    position = 0
    stream = iter(records)
    per_group = _shards_per_group(records_per_shard) * records_per_shard
    with local_writes(path), plan_writer(path) as writer:
        group: list[pa.Table] = []
        capacity = per_group
        while batch := list(islice(stream, min(BATCH_RECORDS, capacity))):
            for record in batch:
                listing.update(_identity(record))
            rows = [_row(position + i, record) for i, record in enumerate(batch)]
            table = pa.Table.from_pylist(rows, PLAN_SCHEMA)
            group.append(clear(table))
            position += len(rows)
            capacity -= len(rows)
            if not capacity:
                writer.write_table(pa.concat_tables(group), row_group_size=per_group)
                group, capacity = [], per_group
        if group:
            writer.write_table(pa.concat_tables(group), row_group_size=per_group)
        writer.add_key_value_metadata({SHARD_KEY: str(records_per_shard)})
    return Plan(path, listing.hexdigest())


def plan_writer(path: Path) -> pq.ParquetWriter:
    """Open the local file `path` to write a plan."""
    return pq.ParquetWriter(path, PLAN_SCHEMA, compression="zstd", write_statistics=False)


def _shards_per_group(records_per_shard: int) -> int:
    return -(-ROW_GROUP_RECORDS // records_per_shard)


def _row(position: int, record: CrawlRecord) -> dict[str, Any]:
    extra = _extra_encoder.encode(record.extra) if record.extra else None
    return {**vars(record), "record": position, "extra": extra}


def _identity(record: CrawlRecord) -> bytes:
    known = {name: value for name, value in vars(record).items() if name not in NOT_IDENTITY}
    return _identity_encoder.encode(known).encode()
