"""Byte-identical repeats are kept once: the first of a crawl, and none that an earlier crawl has already.

What earlier crawls have is known before shards are built, and never decoded. Shards are built without looking at
each other; afterwards the repeats are found in their small tables of rows, and only the shards that hold some are
written again without them. Every step may be interrupted and repeated: a shard that lost its repeats has no accepted
row of them any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import ImageForm
from pipeline.layout import CrawlPaths
from pipeline.records import SHARD_SCHEMA, Crawl
from pipeline.shards import read_shard, write_shard
from pipeline.storage import Storage, read_table, scratch_folder, write_table

DUPLICATE_DETAIL = "the same bytes as the image in duplicate_of"

Known = np.ndarray[Any, np.dtype[np.bytes_]]
"""SHA-256 of files in hexadecimal, sorted: all tasks of a node share one copy in Ray's object store."""
KNOWN_DTYPE = "S64"


def known_files(storage: Storage, crawls: Iterable[Crawl], form: ImageForm) -> Known:
    """The files that complete `crawls` hold as images of the given form."""
    digests = [np.array([], KNOWN_DTYPE)]
    for crawl in crawls:
        if crawl.image_form == form:
            paths = CrawlPaths(crawl.collection, crawl.crawl_id)
            for index in range(crawl.n_shards):
                digests.append(np.array(_accepted(storage, paths.rows(index)), KNOWN_DTYPE))
    return np.unique(np.concatenate(digests))


def is_known(known: Known, sha256: str) -> bool:
    """Whether `known` holds the file."""
    at = np.searchsorted(known, np.array(sha256, KNOWN_DTYPE))
    return bool(at < len(known) and known[at] == sha256.encode())


def find_repeats(storage: Storage, paths: CrawlPaths, n_shards: int, known: Known) -> dict[int, set[str]]:
    """The files to drop, as SHA-256 in hexadecimal, by shard of the crawl `paths`; shards without any are left out.

    All `n_shards` shards are built, and each holds a file at most once. It may hold `known` ones: where a crawl was
    interrupted, another one may have been completed since.
    """
    repeats: dict[int, set[str]] = {}
    seen: set[bytes] = set()  # half the memory of hexadecimal digits: this is the largest object of the driver
    for index in range(n_shards):
        for sha256 in _accepted(storage, paths.rows(index)):
            file = bytes.fromhex(sha256)
            if file in seen or is_known(known, sha256):
                repeats.setdefault(index, set()).add(sha256)
            seen.add(file)
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
                format=None,
                width=None,
                height=None,
            )
    with scratch_folder() as folder:
        tar = folder / "shard.tar"
        samples = read_shard(storage, paths.shard(index))
        write_shard(tar, (sample for sample in samples if sample.image_id not in dropped))
        storage.publish(tar, paths.shard(index))
    write_table(storage, paths.rows(index), pa.Table.from_pylist(rows, SHARD_SCHEMA))


def _accepted(storage: Storage, rows_key: str) -> list[str]:
    """SHA-256 of the files of the accepted rows, in order."""
    table = read_table(storage, rows_key, columns=["status", "sha256"])
    return list(table.filter(pc.field("status") == "accepted")["sha256"].to_pylist())
