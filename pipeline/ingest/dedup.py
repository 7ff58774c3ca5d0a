"""Byte-identical repeats are kept once: the first of a crawl, and none that an earlier crawl has already.

Shards are built without looking at each other. Afterwards the repeats are found in their small tables of rows,
and only the shards that hold some are written again without them. Every step may be interrupted and repeated: a
shard that lost its repeats has no accepted row of them any more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.layout import CrawlPaths
from pipeline.records import SHARD_SCHEMA, Crawl
from pipeline.shards import read_shard, write_shard
from pipeline.storage import Storage, read_table, write_table

DUPLICATE_DETAIL = "the same bytes as the image in duplicate_of"


def find_repeats(
    storage: Storage, paths: CrawlPaths, n_shards: int, earlier: Iterable[Crawl], image_size: int
) -> dict[int, set[str]]:
    """The files to drop, as SHA-256 in hexadecimal, by shard of the crawl `paths`; shards without any are left out.

    Args:
        storage: the workspace.
        paths: the crawl, with all its `n_shards` shards built; within a shard each file is kept at most once.
        n_shards: number of its shards.
        earlier: complete crawls of the collection; only those of the same `image_size` hold the same images.
        image_size: side of the crawl's images in px.
    """
    repeats: dict[int, set[str]] = {}
    shard_of: dict[bytes, int] = {}  # half the memory of hexadecimal keys: this is the largest object of the driver
    for index in range(n_shards):
        for sha256 in _accepted(storage, paths.rows(index)):
            if shard_of.setdefault(bytes.fromhex(sha256), index) != index:
                repeats.setdefault(index, set()).add(sha256)
    for crawl in earlier:
        if crawl.image_size != image_size:
            continue
        other = CrawlPaths(crawl.collection, crawl.crawl_id)
        for index in range(crawl.n_shards):
            for sha256 in _accepted(storage, other.rows(index)):
                if (shard := shard_of.get(bytes.fromhex(sha256))) is not None:
                    repeats.setdefault(shard, set()).add(sha256)
    return repeats


def drop_repeats(storage: Storage, paths: CrawlPaths, index: int, repeats: set[str]) -> None:
    """Write shard `index` again without the files whose SHA-256 is in `repeats`; their rows become rejected ones.

    The tar goes first: an interruption in between leaves accepted rows, which the next run finds and drops again.
    """
    table = read_table(storage, paths.rows(index))
    rows = table.to_pylist()
    dropped = set()
    for row in rows:
        if row["status"] == "accepted" and row["sha256"] in repeats:
            dropped.add(row["image_id"])
            row.update(
                status="rejected",
                reason="duplicate",
                detail=DUPLICATE_DETAIL,
                image_id=None,
                duplicate_of=row["image_id"],
            )
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "shard.tar"
        samples = read_shard(storage, paths.shard(index))
        write_shard(tar, (sample for sample in samples if sample.image_id not in dropped))
        storage.publish(tar, paths.shard(index))
    write_table(storage, paths.rows(index), pa.Table.from_pylist(rows, SHARD_SCHEMA))


def _accepted(storage: Storage, rows_key: str) -> list[str]:
    """SHA-256 of the files of the accepted rows, in order."""
    table = read_table(storage, rows_key, columns=["status", "sha256"])
    return list(table.filter(pc.field("status") == "accepted")["sha256"].to_pylist())
