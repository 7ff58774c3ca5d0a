"""Deduplication: of repeated images, only the first of a crawl is kept, and none that an earlier crawl already has.

A repeat is an image with the same bytes as another one (duplicate), or one that looks like it (near-duplicate).

1. Before shards are built, the files of earlier crawls are known, so that they are not decoded again (`known_images`).
2. Shards are built independently of each other.
3. Afterwards, the small tables of rows are compared to decide which images to drop (`find_repeats`). The decisions are
   published as ``repeats.parquet``.
4. Only then are the shards written again (`drop_repeats`). An interrupted job continues with the same decisions.
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
from pipeline.ingest.repeats.near_duplicates import as_signatures, originals_of
from pipeline.paths import CrawlPaths
from pipeline.records import SHARD_SCHEMA, Crawl
from pipeline.shards import Sample, publish_shard, read_shard
from pipeline.storage import Storage, read_table, read_tables, write_table

DUPLICATE_DETAIL = "the file has the same bytes as the image in duplicate_of"
NEAR_DUPLICATE_DETAIL = "the image looks like the image in duplicate_of"

IMAGE_ID_DIGITS = 20
"""Number of hexadecimal digits of an image's identity that form its id."""

KNOWN = np.dtype([("identity", "S64"), ("image_id", "S20")])
"""Data type of `KnownImages`: the identity of an image in hexadecimal, and the id of the image that is kept."""

KnownImages = np.ndarray[Any, np.dtype[np.void]]
"""Images of earlier crawls (N,), of type KNOWN, sorted by identity. As an array, all tasks of a node share one copy."""

NAMED = "named"
"""Value of ``reason`` in ``repeats.parquet`` that rejects no image. It means that ``duplicate_of`` of some rows of the
shard is an image that was dropped, and must be replaced by the kept image."""

REPEATS_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int64()),
        pa.field("image_id", pa.string(), metadata={"doc": "image that is dropped"}),
        pa.field("duplicate_of", pa.string(), metadata={"doc": "image that is kept instead"}),
        pa.field("reason", pa.string(), metadata={"doc": "duplicate | near_duplicate | named"}),
    ]
)
"""Schema of ``repeats.parquet``: the decisions about the repeats of a crawl."""

DETAILS = {"duplicate": DUPLICATE_DETAIL, "near_duplicate": NEAR_DUPLICATE_DETAIL}
"""Explanations for the user, by reason."""


def identity(sha256: str, fingerprint: str, keep_duplicates: bool) -> str:
    """Return the identity of an image in hexadecimal: two records with the same identity are duplicates.

    It depends on the bytes of the file and, if duplicates are kept, also on the position in the source (`fingerprint`).
    """
    if not keep_duplicates:
        return sha256
    return hashlib.sha256(f"{sha256}:{fingerprint}".encode()).hexdigest()


def known_images(storage: Storage, crawls: Iterable[Crawl], config: IngestConfig) -> KnownImages:
    """Return the images of the complete `crawls`, and the near-duplicates that were dropped from them.

    Crawls whose image form differs from that of `config` are left out.
    """
    parts = [np.empty(0, KNOWN)]
    columns = ["sha256", "fingerprint", "image_id", "duplicate_of", "reason", "status"]
    for table in read_tables(storage, _rows_of(crawls, config), columns):
        has_image = (pc.field("status") == "accepted") | (pc.field("reason") == "near_duplicate")
        known = [
            (
                identity(row["sha256"], row["fingerprint"], config.keep_duplicates),
                row["image_id"] or row["duplicate_of"],
            )
            for row in table.filter(has_image).to_pylist()
        ]
        parts.append(np.array(known, KNOWN))
    everything = np.concatenate(parts)
    return everything[np.unique(everything["identity"], return_index=True)[1]]


def known_image_id(known: KnownImages, image: str) -> str | None:
    """The id of the image that is kept for the identity `image`; None if the identity is not among `known`."""
    index = np.searchsorted(known["identity"], np.bytes_(image))
    if index == len(known) or known["identity"][index] != image.encode():
        return None
    return str(known["image_id"][index].decode())


def find_repeats(
    storage: Storage,
    paths: CrawlPaths,
    n_shards: int,
    known: KnownImages,
    earlier: Iterable[Crawl],
    config: IngestConfig,
) -> pa.Table:
    """Decide which images of the crawl `paths` to drop, once its `n_shards` shards are built.

    Returns a table with REPEATS_SCHEMA. No shard contains an image twice. A shard may contain `known` images, if
    another crawl was completed after it was built. `earlier` are the crawls that `known` was read from.
    """
    repeats: list[dict[str, Any]] = []
    seen: set[bytes] = set()  # identities as bytes take half the memory of hexadecimal digits
    new: list[tuple[int, str]] = []
    signatures: list[bytes] = []
    shards_of_copies: dict[str, set[int]] = {}  # by the image that rows of these shards have in duplicate_of
    columns = ["status", "sha256", "fingerprint", "image_id", "look", "duplicate_of"]
    for index, table in enumerate(read_tables(storage, map(paths.rows, range(n_shards)), columns)):
        for original in table["duplicate_of"].drop_null().to_pylist():
            shards_of_copies.setdefault(original, set()).add(index)
        for row in table.filter(pc.field("status") == "accepted").to_pylist():
            image = identity(row["sha256"], row["fingerprint"], config.keep_duplicates)
            kept = known_image_id(known, image)
            if kept is not None or bytes.fromhex(image) in seen:
                repeats.append(_repeat(index, row["image_id"], kept or row["image_id"], "duplicate"))
            elif row["look"] is not None:
                new.append((index, row["image_id"]))
                signatures.append(row["look"])
            seen.add(bytes.fromhex(image))
    if not config.keep_duplicates and new:
        originals = {}  # of dropped near-duplicates
        for (index, image_id), original in _near_duplicates(storage, new, signatures, earlier, config):
            originals[image_id] = original
            repeats.append(_repeat(index, image_id, original, "near_duplicate"))
        # A duplicate of a dropped near-duplicate names the image that is kept.
        for repeat in repeats:
            repeat["duplicate_of"] = originals.get(repeat["duplicate_of"], repeat["duplicate_of"])
        for image_id in originals.keys() & shards_of_copies.keys():
            for index in sorted(shards_of_copies[image_id]):
                repeats.append(_repeat(index, image_id, originals[image_id], NAMED))
    return pa.Table.from_pylist(repeats, REPEATS_SCHEMA)


def drop_repeats(storage: Storage, paths: CrawlPaths, index: int, repeats: pa.Table) -> None:
    """Write shard `index` again without the images to be dropped, and reject their rows.

    `repeats` (REPEATS_SCHEMA) are the decisions about this shard. The tar is published before the rows: if the job is
    interrupted in between, these rows are still accepted, and the next job drops the images again.

    Raises StorageError if the tar lacks an image that is kept.
    """
    rows = read_table(storage, paths.rows(index)).to_pylist()
    decisions = repeats.to_pylist()
    dropped = {repeat["image_id"]: repeat for repeat in decisions if repeat["reason"] != NAMED}
    renamed = {repeat["image_id"]: repeat["duplicate_of"] for repeat in decisions if repeat["reason"] == NAMED}
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
        samples, missing = accepted_samples(storage, paths, index, table)
        if missing:
            raise StorageError(
                f"{storage.uri(paths.shard(index))}: image {min(missing)} is missing, although its row is accepted; "
                f"delete {storage.uri(paths.folder)} and ingest again"
            )
        publish_shard(storage, paths.shard(index), samples)
    write_table(storage, paths.rows(index), table)


def accepted_samples(storage: Storage, paths: CrawlPaths, index: int, rows: pa.Table) -> tuple[list[Sample], set[str]]:
    """Return the images in the tar of shard `index` that `rows` accept, and the ids of those that the tar lacks."""
    accepted = set(rows.filter(pc.field("status") == "accepted")["image_id"].to_pylist())
    samples = [sample for sample in read_shard(storage, paths.shard(index)) if sample.image_id in accepted]
    return samples, accepted - {sample.image_id for sample in samples}


def _repeat(shard: int, image_id: str, duplicate_of: str, reason: str) -> dict[str, Any]:
    return {"shard": shard, "image_id": image_id, "duplicate_of": duplicate_of, "reason": reason}


def _near_duplicates(
    storage: Storage,
    new: list[tuple[int, str]],
    signatures: list[bytes],
    earlier: Iterable[Crawl],
    config: IngestConfig,
) -> Iterator[tuple[tuple[int, str], str]]:
    """Yield each of the `new` images (shard, image id) that looks like another image, with the id of that image.

    `signatures` are those of the `new` images. The other image is in one of the crawls `earlier`, or is an earlier one
    of the `new` images.
    """
    image_ids, earlier_signatures = [], []
    for table in read_tables(storage, _rows_of(earlier, config), ["status", "image_id", "look"]):
        for row in table.filter(pc.field("status") == "accepted").to_pylist():
            if row["look"] is not None:
                image_ids.append(row["image_id"])
                earlier_signatures.append(row["look"])
    n_earlier = len(earlier_signatures)
    image_ids += [image_id for _, image_id in new]
    for index, original in originals_of(as_signatures([*earlier_signatures, *signatures]), n_earlier).items():
        yield new[index - n_earlier], image_ids[original]


def _rows_of(crawls: Iterable[Crawl], config: IngestConfig) -> Iterator[str]:
    """Yield the keys of the tables of rows of those `crawls` whose image form is that of `config`."""
    for crawl in crawls:
        if crawl.image_form == config.image_form:
            yield from map(CrawlPaths(crawl.collection, crawl.crawl_id).rows, range(crawl.n_shards))
