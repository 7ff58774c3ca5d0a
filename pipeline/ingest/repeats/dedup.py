"""Repeats are kept once: the first of a crawl, and none that an earlier crawl has already.

A repeat has the bytes of another image, or looks like it. What earlier crawls have seen is known before shards are
built, and never decoded. Shards are built without looking at each other; afterwards it is decided from their small
tables of rows what to drop, and the decisions are published. Only then are shards written again, so that a job that
is interrupted while it drops goes on with the same decisions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import IngestConfig
from pipeline.errors import StorageError
from pipeline.ingest.repeats.near_duplicates import as_looks, originals_of
from pipeline.paths import CrawlPaths
from pipeline.records import SHARD_SCHEMA, Crawl
from pipeline.shards import Sample, publish_shard, read_shard
from pipeline.storage import Storage, read_table, read_tables, write_table

DUPLICATE_DETAIL = "the same bytes as the image in duplicate_of"
NEAR_DUPLICATE_DETAIL = "looks like the image in duplicate_of"
IMAGE_ID_DIGITS = 20
"""Hexadecimal digits of an image's identity that name it, in every crawl alike."""

KNOWN = np.dtype([("identity", "S64"), ("image_id", "S20")])
Known = np.ndarray[Any, np.dtype[np.void]]
"""KNOWN: identities in hexadecimal, sorted, and the images that were kept: all tasks of a node share one copy."""

NAMED = "named"
"""Instead of a reason: the image was dropped, and rows of this shard name it."""

REPEATS_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int64()),
        pa.field("image_id", pa.string(), metadata={"doc": "image that is dropped"}),
        pa.field("duplicate_of", pa.string(), metadata={"doc": "image that is kept instead"}),
        pa.field("reason", pa.string(), metadata={"doc": "duplicate | near_duplicate | named"}),
    ]
)
"""``repeats.parquet``: what is decided about the repeats of a crawl."""

DETAILS = {"duplicate": DUPLICATE_DETAIL, "near_duplicate": NEAR_DUPLICATE_DETAIL}


def identity(sha256: str, fingerprint: str, keep_duplicates: bool) -> str:
    """What tells an image from others, in hexadecimal: its bytes; to keep duplicates, its place in the source, too."""
    if not keep_duplicates:
        return sha256
    return hashlib.sha256(f"{sha256}:{fingerprint}".encode()).hexdigest()


def known_images(storage: Storage, crawls: Iterable[Crawl], config: IngestConfig) -> Known:
    """What complete `crawls` have in the form of `config`, or have found to look like what they have."""
    found = [np.empty(0, KNOWN)]
    columns = ["sha256", "fingerprint", "image_id", "duplicate_of", "reason", "status"]
    for table in read_tables(storage, _rows_of(crawls, config), columns):
        kept = (pc.field("status") == "accepted") | (pc.field("reason") == "near_duplicate")
        known = [
            (
                identity(row["sha256"], row["fingerprint"], config.keep_duplicates),
                row["image_id"] or row["duplicate_of"],
            )
            for row in table.filter(kept).to_pylist()
        ]
        found.append(np.array(known, KNOWN))
    everything = np.concatenate(found)
    return everything[np.unique(everything["identity"], return_index=True)[1]]


def known_as(known: Known, image: str) -> str | None:
    """The image that is kept of the identity `image`, if any is known."""
    at = np.searchsorted(known["identity"], np.bytes_(image))
    if at == len(known) or known["identity"][at] != image.encode():
        return None
    return str(known["image_id"][at].decode())


def find_repeats(
    storage: Storage, paths: CrawlPaths, n_shards: int, known: Known, earlier: Iterable[Crawl], config: IngestConfig
) -> pa.Table:
    """What to drop of the crawl `paths` (REPEATS_SCHEMA), whose `n_shards` shards are built.

    Each shard holds an image at most once. It may hold `known` ones: where a crawl was interrupted, another one may
    have been completed since. `earlier` are the crawls that `known` is of.
    """
    repeats: list[dict[str, Any]] = []
    seen: set[bytes] = set()  # half the memory of hexadecimal digits
    new: list[tuple[int, str]] = []
    looks: list[bytes] = []
    namers: dict[str, set[int]] = {}
    columns = ["status", "sha256", "fingerprint", "image_id", "look", "duplicate_of"]
    for index, table in enumerate(read_tables(storage, map(paths.rows, range(n_shards)), columns)):
        for name in table["duplicate_of"].drop_null().to_pylist():
            namers.setdefault(name, set()).add(index)
        for row in table.filter(pc.field("status") == "accepted").to_pylist():
            image = identity(row["sha256"], row["fingerprint"], config.keep_duplicates)
            kept = known_as(known, image)
            if kept is not None or bytes.fromhex(image) in seen:
                repeats.append(_repeat(index, row["image_id"], kept or row["image_id"], "duplicate"))
            elif row["look"] is not None:
                new.append((index, row["image_id"]))
                looks.append(row["look"])
            seen.add(bytes.fromhex(image))
    if not config.keep_duplicates and new:
        instead = {}
        for (index, image_id), original in _near_duplicates(storage, new, looks, earlier, config):
            instead[image_id] = original
            repeats.append(_repeat(index, image_id, original, "near_duplicate"))
        for repeat in repeats:
            repeat["duplicate_of"] = instead.get(repeat["duplicate_of"], repeat["duplicate_of"])
        for name in instead.keys() & namers.keys():
            repeats += [_repeat(index, name, instead[name], NAMED) for index in sorted(namers[name])]
    return pa.Table.from_pylist(repeats, REPEATS_SCHEMA)


def drop_repeats(storage: Storage, paths: CrawlPaths, index: int, repeats: pa.Table) -> None:
    """Write shard `index` again without the images that its `repeats` name; their rows become rejected ones.

    The tar goes first: an interruption in between leaves accepted rows, and the next run drops them again.

    Raises StorageError where the tar lacks an image that stays.
    """
    rows = read_table(storage, paths.rows(index)).to_pylist()
    decided = repeats.to_pylist()
    dropped = {repeat["image_id"]: repeat for repeat in decided if repeat["reason"] != NAMED}
    renamed = {repeat["image_id"]: repeat["duplicate_of"] for repeat in decided if repeat["reason"] == NAMED}
    for row in rows:
        if row["duplicate_of"] in renamed:
            row.update(duplicate_of=renamed[row["duplicate_of"]])
        if row["status"] == "accepted" and (repeat := dropped.get(row["image_id"])) is not None:
            row.update(
                status="rejected",
                reason=repeat["reason"],
                detail=DETAILS[repeat["reason"]],
                image_id=None,
                duplicate_of=repeat["duplicate_of"],
                stored_bytes=None,
                format=None,
                width=None,
                height=None,
            )
    table = pa.Table.from_pylist(rows, SHARD_SCHEMA)
    if dropped:
        samples, lost = accepted_samples(storage, paths, index, table)
        if lost:
            raise StorageError(
                f"{storage.uri(paths.shard(index))}: has no image {min(lost)}, which its rows have; delete "
                f"{storage.uri(paths.folder)} and ingest again"
            )
        publish_shard(storage, paths.shard(index), samples)
    write_table(storage, paths.rows(index), table)


def accepted_samples(storage: Storage, paths: CrawlPaths, index: int, rows: pa.Table) -> tuple[list[Sample], set[str]]:
    """What the tar of shard `index` has of the images that its new `rows` accept, and the ids of what it lacks."""
    staying = set(rows.filter(pc.field("status") == "accepted")["image_id"].to_pylist())
    samples = [sample for sample in read_shard(storage, paths.shard(index)) if sample.image_id in staying]
    return samples, staying - {sample.image_id for sample in samples}


def _repeat(shard: int, image_id: str, duplicate_of: str, reason: str) -> dict[str, Any]:
    return {"shard": shard, "image_id": image_id, "duplicate_of": duplicate_of, "reason": reason}


def _near_duplicates(
    storage: Storage,
    new: list[tuple[int, str]],
    looks: list[bytes],
    earlier: Iterable[Crawl],
    config: IngestConfig,
) -> Iterator[tuple[tuple[int, str], str]]:
    """Each of the `new` images (shard, image) that looks like another one, by `looks`, and which that is."""
    image_ids, before = [], []
    for table in read_tables(storage, _rows_of(earlier, config), ["status", "image_id", "look"]):
        for row in table.filter(pc.field("status") == "accepted").to_pylist():
            if row["look"] is not None:
                image_ids.append(row["image_id"])
                before.append(row["look"])
    kept = len(before)
    image_ids += [image_id for _, image_id in new]
    for place, original in originals_of(as_looks([*before, *looks]), kept).items():
        yield new[place - kept], image_ids[original]


def _rows_of(crawls: Iterable[Crawl], config: IngestConfig) -> Iterator[str]:
    """Keys of the shards' rows of those `crawls` whose images have the form of `config`."""
    for crawl in crawls:
        if crawl.image_form == config.image_form:
            yield from map(CrawlPaths(crawl.collection, crawl.crawl_id).rows, range(crawl.n_shards))
