"""One task of ingest: the records of one shard become its tar and its rows."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config import IngestConfig
from pipeline.errors import StorageError
from pipeline.ingest.dedup import DUPLICATE_DETAIL, Known, is_known
from pipeline.ingest.fetch import fetch
from pipeline.ingest.images import decode_square, encode, square_of
from pipeline.ingest.labelled import read_record, record_digest
from pipeline.ingest.rejection import Rejected
from pipeline.layout import CrawlPaths
from pipeline.records import SHARD_SCHEMA
from pipeline.shards import Sample, write_shard
from pipeline.storage import Storage, write_table

METADATA_COLUMNS = (
    "image_id", "source_uri", "file_name", "shortcode", "caption", "hashtags", "source_url", "label", "width", "height",
)  # fmt: skip
"""Columns that go as they are into an image's JSON; ``taken_at`` (ISO 8601) and ``extra`` join them."""

IMAGE_ID_DIGITS = 20
"""Hexadecimal digits of the SHA-256 of a file's bytes that name its image, in every crawl alike."""


def build_shard(
    storage: Storage, paths: CrawlPaths, index: int, records: pa.Table, known: Known, config: IngestConfig
) -> int:
    """Fetch, decode and publish the `records` (PLAN_SCHEMA) of shard `index`; the number of accepted images.

    Files that are `known` from earlier crawls are not decoded. The tar is published first and the rows last: where
    the rows are, the shard is done. The same records over the same files give the same bytes, however often this runs.

    Raises StorageError where the machine is at fault, and another attempt may succeed.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "shard.tar"
        write_shard(tar, _samples(records.to_pylist(), known, config, rows))
        storage.publish(tar, paths.shard(index))
    write_table(storage, paths.rows(index), pa.Table.from_pylist(rows, SHARD_SCHEMA))
    return sum(row["status"] == "accepted" for row in rows)


def _samples(
    records: list[dict[str, Any]], known: Known, config: IngestConfig, rows: list[dict[str, Any]]
) -> Iterator[Sample]:
    """The accepted images in order; a row for every record, accepted or not, is appended to `rows`."""
    kept: set[str] = set()
    for record in records:
        row = dict(record)
        rows.append(row)
        try:
            yield _ingest(row, known, kept, config)
        except Rejected as rejected:
            row.update(status="rejected", reason=rejected.reason, detail=rejected.detail)
        except MemoryError as error:
            raise StorageError(f"cannot decode {record['source_uri']}: this machine is out of memory") from error


def _ingest(row: dict[str, Any], known: Known, kept: set[str], config: IngestConfig) -> Sample:
    """The record in `row` as a sample; what is learned on the way is added to `row`, and its digest to `kept`.

    Raises Rejected.
    """
    if row["problem"]:
        raise Rejected(row["problem"], row["problem_detail"] or "known from the crawl's listing")
    if row["array_sha256"] is None:
        content = fetch(row["source_uri"], config.max_bytes)
        sha256, n_bytes = hashlib.sha256(content).hexdigest(), len(content)
        decode = partial(decode_square, content)
    else:
        pixels = read_record(row["source_uri"], row["array_index"], row["array_sha256"])
        sha256, n_bytes = record_digest(row["array_sha256"], row["array_index"]), pixels.nbytes
        decode = partial(square_of, pixels, row["array_format"])
    image_id = sha256[:IMAGE_ID_DIGITS]
    row.update(bytes=n_bytes, sha256=sha256)
    if sha256 in kept or is_known(known, sha256):
        row.update(duplicate_of=image_id)
        raise Rejected("duplicate", DUPLICATE_DETAIL)
    image = decode(config)
    kept.add(sha256)
    row.update(status="accepted", image_id=image_id, format=image.format, width=image.width, height=image.height)
    data = encode(image.pixels, config.image_format, config.jpeg_quality)
    return Sample(image_id, data, _metadata(row), image_format=config.image_format)


def _metadata(row: dict[str, Any]) -> dict[str, Any]:
    """What the image's JSON in the tar tells."""
    return {
        **{name: row[name] for name in METADATA_COLUMNS},
        "taken_at": row["taken_at"].isoformat() if row["taken_at"] else None,
        "extra": json.loads(row["extra"]) if row["extra"] else {},
    }
