"""Repeats are kept once: the first of a crawl, and none that an earlier crawl has already.

A repeat has the bytes of another image, or looks like it. Files that earlier crawls have are known before shards are
built, and never decoded. Shards are built without looking at each other; afterwards the repeats are found in their
small tables of rows, and only the shards that hold some are written again without them. Every step may be interrupted
and repeated: a shard that lost its repeats has no accepted row of them any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import IngestConfig
from pipeline.ingest.near_duplicates import as_looks, originals_of
from pipeline.ingest.rejection import RejectReason
from pipeline.layout import CrawlPaths
from pipeline.records import SHARD_SCHEMA, Crawl
from pipeline.shards import read_shard, write_shard
from pipeline.storage import Storage, read_table, scratch_folder, write_table

DUPLICATE_DETAIL = "the same bytes as the image in duplicate_of"
NEAR_DUPLICATE_DETAIL = "looks like the image in duplicate_of"
IMAGE_ID_DIGITS = 20
"""Hexadecimal digits of an image's identity that name it, in every crawl alike."""

Known = np.ndarray[Any, np.dtype[np.bytes_]]
"""Identities in hexadecimal, sorted: all tasks of a node share one copy in Ray's object store."""
KNOWN_DTYPE = "S64"


@dataclass(frozen=True)
class Repeat:
    """Why an accepted image is dropped."""

    duplicate_of: str
    """Image that is kept instead."""
    reason: RejectReason
    detail: str


def identity(sha256: str, file_name: str, keep_duplicates: bool) -> str:
    """What tells an image from others, in hexadecimal: its bytes; with `keep_duplicates` its file's name, too."""
    if not keep_duplicates:
        return sha256
    return hashlib.sha256(f"{sha256}:{file_name}".encode()).hexdigest()


def known_images(storage: Storage, crawls: Iterable[Crawl], config: IngestConfig) -> Known:
    """The images that complete `crawls` hold in the form of `config`."""
    found = [np.array([], KNOWN_DTYPE)]
    for paths, index in _shards_of(crawls, config):
        rows = _accepted(storage, paths.rows(index), ["sha256", "file_name"])
        names = [identity(row["sha256"], row["file_name"], config.keep_duplicates) for row in rows]
        found.append(np.array(names, KNOWN_DTYPE))
    return np.unique(np.concatenate(found))


def is_known(known: Known, image: str) -> bool:
    """Whether `known` holds the identity `image`."""
    at = np.searchsorted(known, np.array(image, KNOWN_DTYPE))
    return bool(at < len(known) and known[at] == image.encode())


def find_repeats(
    storage: Storage, paths: CrawlPaths, n_shards: int, known: Known, earlier: Iterable[Crawl], config: IngestConfig
) -> dict[int, dict[str, Repeat]]:
    """The images to drop, by their ids, by shard of the crawl `paths`; shards without any are left out.

    All `n_shards` shards are built, and each holds an image at most once. It may hold `known` ones: where a crawl was
    interrupted, another one may have been completed since. `earlier` are the crawls that `known` is of.
    """
    repeats: dict[int, dict[str, Repeat]] = {}
    seen: set[bytes] = set()  # half the memory of hexadecimal digits
    new: list[tuple[int, str, str]] = []  # shard, image and its look
    named: set[str] = set()  # what duplicates of this crawl name
    for index in range(n_shards):
        columns = ["sha256", "file_name", "image_id", "look", "duplicate_of"]
        table = read_table(storage, paths.rows(index), columns=["status", *columns])
        named.update(table["duplicate_of"].drop_null().to_pylist())
        for row in table.filter(pc.field("status") == "accepted").to_pylist():
            name = identity(row["sha256"], row["file_name"], config.keep_duplicates)
            if bytes.fromhex(name) in seen or is_known(known, name):
                repeat = Repeat(row["image_id"], "duplicate", DUPLICATE_DETAIL)
                repeats.setdefault(index, {})[row["image_id"]] = repeat
            elif row["look"] is not None:
                new.append((index, row["image_id"], row["look"]))
            seen.add(bytes.fromhex(name))
    if not config.keep_duplicates:
        new.sort(key=lambda image: image[1] not in named)  # an image that rows name stays
        for index, image_id, original in _near_duplicates(storage, new, earlier, config):
            repeat = Repeat(original, "near_duplicate", NEAR_DUPLICATE_DETAIL)
            repeats.setdefault(index, {})[image_id] = repeat
    return repeats


def drop_repeats(storage: Storage, paths: CrawlPaths, index: int, repeats: dict[str, Repeat]) -> None:
    """Write shard `index` again without the images in `repeats`; their rows become rejected ones.

    The tar goes first: an interruption in between leaves accepted rows, which the next run finds and drops again.
    """
    table = read_table(storage, paths.rows(index))
    rows = table.to_pylist()
    for row in rows:
        if (repeat := repeats.get(row["image_id"])) is not None:
            row.update(
                status="rejected",
                reason=repeat.reason,
                detail=repeat.detail,
                image_id=None,
                duplicate_of=repeat.duplicate_of,
                stored_bytes=None,
                format=None,
                width=None,
                height=None,
            )
    with scratch_folder() as folder:
        tar = folder / "shard.tar"
        samples = read_shard(storage, paths.shard(index))
        write_shard(tar, (sample for sample in samples if sample.image_id not in repeats))
        storage.publish(tar, paths.shard(index))
    write_table(storage, paths.rows(index), pa.Table.from_pylist(rows, SHARD_SCHEMA))


def _near_duplicates(
    storage: Storage, new: list[tuple[int, str, str]], earlier: Iterable[Crawl], config: IngestConfig
) -> Iterator[tuple[int, str, str]]:
    """Shard, image and original of each of the `new` images (shard, image, look) that looks like another."""
    if not new:
        return
    image_ids, looks = [], []
    for paths, index in _shards_of(earlier, config):
        for row in _accepted(storage, paths.rows(index), ["image_id", "look"]):
            if row["look"] is not None:
                image_ids.append(row["image_id"])
                looks.append(row["look"])
    kept = len(looks)
    image_ids += [image_id for _, image_id, _ in new]
    looks += [look for _, _, look in new]
    for place, original in originals_of(as_looks(looks), kept).items():
        index, image_id, _ = new[place - kept]
        yield index, image_id, image_ids[original]


def _shards_of(crawls: Iterable[Crawl], config: IngestConfig) -> Iterator[tuple[CrawlPaths, int]]:
    """The shards of those `crawls` whose images have the form of `config`."""
    for crawl in crawls:
        if crawl.image_form == config.image_form:
            for index in range(crawl.n_shards):
                yield CrawlPaths(crawl.collection, crawl.crawl_id), index


def _accepted(storage: Storage, rows_key: str, columns: list[str]) -> list[dict[str, Any]]:
    """The accepted rows in order."""
    table = read_table(storage, rows_key, columns=["status", *columns])
    return list(table.filter(pc.field("status") == "accepted").to_pylist())
