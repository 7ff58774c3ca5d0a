"""Ray tasks of the ingest stage: turn the records of one shard into its tar of images and its table of rows.

The path of a record: `_read` fetches its content, `_make_image` decodes and encodes it, `_complete` fills in its row
(accepted, or rejected with a reason), and `_sample` puts an accepted image into the tar.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.config import IngestConfig
from pipeline.errors import StorageError
from pipeline.ingest.download.downloads import download
from pipeline.ingest.download.host_limits import Exchange, limits_of, local_limits
from pipeline.ingest.download.pages import refuse_pages
from pipeline.ingest.download.urls import is_url
from pipeline.ingest.forget.names import CLEARED_VALUES, FORGOTTEN, FORGOTTEN_DETAIL, NO_NAMES, Names, is_forgotten
from pipeline.ingest.images import decode_square, encode, square_of
from pipeline.ingest.rejection import Rejected, RejectReason
from pipeline.ingest.repeats.dedup import DUPLICATE_DETAIL, IMAGE_ID_DIGITS, KnownImages, identity, known_image_id
from pipeline.ingest.repeats.near_duplicates import signature_of
from pipeline.ingest.sources.arrays.labelled_arrays import read_record, record_digest
from pipeline.ingest.sources.content import read_content
from pipeline.ingest.sources.s3 import use_access
from pipeline.masking import mask
from pipeline.paths import CrawlPaths
from pipeline.records import SHARD_SCHEMA, Pixels
from pipeline.shards import Sample, publish_shard, read_shard
from pipeline.storage import Storage, read_table, write_table

METADATA_COLUMNS = (
    "image_id", "source_uri", "file_name", "shortcode", "caption", "hashtags", "source_url", "label", "width", "height",
)  # fmt: skip
"""Columns that are copied to the JSON member of an image, to which ``taken_at`` (ISO 8601) and ``extra`` are added."""

UNREACHABLE: RejectReason = "unreachable"
"""The only reason for which a rejected record is retried."""


@dataclass(frozen=True)
class ShardTask:
    """The data that all tasks over the shards of one crawl share. Ray sends it to each node once."""

    storage: Storage
    paths: CrawlPaths
    config: IngestConfig
    known: KnownImages
    """Images of earlier crawls; the same files are not decoded again."""
    forgotten: Names = field(default_factory=lambda: NO_NAMES)
    """Names of the images that the collection must forget."""
    limiter: Any = None
    """Handle of the `HostLimiter` actor of the job. Without one, the limits per host hold only within each task."""

    @property
    def limits(self) -> Exchange:
        """Access to the limits per host."""
        return local_limits(self.config.http) if self.limiter is None else limits_of(self.limiter)


def build_shard(task: ShardTask, index: int, records: pa.Table) -> int:
    """Fetch, decode and publish the `records` (PLAN_SCHEMA) of shard `index`; return the number of accepted images.

    The tar is published first and the rows last, so the shard is done if its rows exist. The same records and files
    give the same bytes, regardless of the number of attempts and of the order in which downloads finish.

    Raises StorageError if this machine is at fault and another attempt may succeed.
    """
    plan = records.to_pylist()
    rows = [dict.fromkeys(SHARD_SCHEMA.names) | _without_secrets(record) for record in plan]
    samples = _process(task, plan, rows, todo=dict(enumerate(rows)), kept={})
    _publish(task, index, rows, samples)
    return sum(row["status"] == "accepted" for row in rows)


def rebuild_shard(task: ShardTask, index: int, records: pa.Table) -> int:
    """Retry only the unreachable records of the built shard `index`; return the number of new images.

    The images of the shard stay in it; a record that is reached now and repeats one of them is the duplicate. Nothing
    is written if no record was reached.

    Raises StorageError like `build_shard`.
    """
    rows = read_table(task.storage, task.paths.rows(index)).to_pylist()
    retried = {position: row for position, row in enumerate(rows) if row["reason"] == UNREACHABLE}
    for row in retried.values():
        row.update(status=None, reason=None, detail=None)
    kept = {sample.image_id: sample for sample in read_shard(task.storage, task.paths.shard(index))}
    samples = _process(task, records.to_pylist(), rows, retried, kept)
    # An interrupted attempt may have left images in the tar that are not in the rows.
    if any(row["reason"] != UNREACHABLE for row in retried.values()) or len(samples) != len(kept):
        _publish(task, index, rows, samples)
    return sum(row["status"] == "accepted" for row in retried.values())


def _publish(task: ShardTask, index: int, rows: list[dict[str, Any]], samples: list[Sample]) -> None:
    publish_shard(task.storage, task.paths.shard(index), samples)
    write_table(task.storage, task.paths.rows(index), pa.Table.from_pylist(rows, SHARD_SCHEMA))


def _process(
    task: ShardTask,
    plan: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    todo: dict[int, dict[str, Any]],
    kept: dict[str, Sample],
) -> list[Sample]:
    """Complete the rows `todo`, and return all accepted images of the shard in the order of its rows.

    Args:
        task: the data that the tasks of the crawl share.
        plan: the records of the rows, in the same order, with complete addresses.
        rows: all rows of the shard.
        todo: the rows to complete, by their positions in `rows`.
        kept: the images of rows that are accepted already, by their ids.
    """
    made: dict[str, _ShardImage | Rejected] = {}  # by SHA-256: each content is decoded once
    for position, content in _read(task, plan, todo):
        row = rows[position]
        if isinstance(content, Rejected):
            _reject(row, content)
            continue
        row.update(bytes=content.n_bytes, sha256=content.sha256)
        image = identity(content.sha256, row["fingerprint"], task.config.keep_duplicates)
        if len(task.forgotten) and is_forgotten(task.forgotten, content.sha256, image[:IMAGE_ID_DIGITS]):
            _reject(row, Rejected(FORGOTTEN, FORGOTTEN_DETAIL))
        elif (original := known_image_id(task.known, image)) is not None:
            row.update(duplicate_of=original)
            _reject(row, Rejected("duplicate", DUPLICATE_DETAIL))
        elif content.sha256 not in made:
            made[content.sha256] = _make_image(content, plan[position]["source_uri"], task.config)
    # Of two duplicates, the first in the plan is kept, not the first to be downloaded.
    image_ids = {row["image_id"] for row in rows if row["status"] == "accepted"}
    samples = []
    for position, row in enumerate(rows):
        if position in todo and row["status"] is None:
            result = made[row["sha256"]]
            _complete(row, result, image_ids, task.config)
            if row["status"] == "accepted":
                assert isinstance(result, _ShardImage)
                samples.append(_sample(row, result, task.config))
        # An accepted row can lack its image: it is a duplicate whose dropping was interrupted and will be repeated.
        elif row["status"] == "accepted" and row["image_id"] in kept:
            samples.append(kept[row["image_id"]])
    return samples


@dataclass(frozen=True)
class _Content:
    """The content of a record before decoding: either a file, or an image of an array."""

    sha256: str
    n_bytes: int
    file: bytes | None = None
    pixels: Pixels | None = None
    array_format: str = ""


@dataclass(frozen=True)
class _ShardImage:
    """An image that was decoded, cropped to a square and encoded for the shard."""

    data: bytes
    """Content of the image file in the shard."""
    format: str
    width: int
    height: int
    signature: bytes | None
    """Perceptual signature (see `signature_of`); None if duplicates are kept, and for images of arrays, which are never
    treated as reposts."""


def _read(
    task: ShardTask, plan: list[dict[str, Any]], todo: dict[int, dict[str, Any]]
) -> Iterator[tuple[int, _Content | Rejected]]:
    """Yield the positions `todo`, in any order, each with the content of its record or the reason for rejecting it."""
    use_access(task.config.s3_access)
    urls = {}
    for position in todo:
        record, address = plan[position], plan[position]["source_uri"]
        if record["problem"]:
            yield position, Rejected(record["problem"], record["problem_detail"] or "found while listing the crawl")
            continue
        if record["array_sha256"] is not None:
            yield position, _read_array(record)
            continue
        if is_url(address):
            urls[position] = address
        else:
            yield position, _read_file(address, task.config.max_bytes)
    if urls:
        answers = download(urls, task.config.max_bytes, task.config.http, task.limits)
        for position, data in refuse_pages(answers):
            yield position, data if isinstance(data, Rejected) else _file_content(data)


def _file_content(data: bytes) -> _Content:
    return _Content(hashlib.sha256(data).hexdigest(), len(data), file=data)


def _read_file(address: str, max_bytes: int) -> _Content | Rejected:
    try:
        return _file_content(read_content(address, max_bytes))
    except Rejected as rejected:
        return rejected


def _read_array(record: dict[str, Any]) -> _Content | Rejected:
    try:
        pixels = read_record(record["source_uri"], record["array_index"], record["array_sha256"])
    except Rejected as rejected:
        return rejected
    sha256 = record_digest(record["array_sha256"], record["array_index"])
    return _Content(sha256, pixels.nbytes, pixels=pixels, array_format=record["array_format"])


def _without_secrets(row: dict[str, Any]) -> dict[str, Any]:
    """Return `row` without the passwords in its addresses, in whichever column they are."""
    return {name: mask(value) if isinstance(value, str) else value for name, value in row.items()}


def _make_image(content: _Content, source_uri: str, config: IngestConfig) -> _ShardImage | Rejected:
    """Decode `content` to a square and encode it for the shard.

    Raises StorageError if this machine has too little memory.
    """
    try:
        if content.file is not None:
            image = decode_square(content.file, config)
        else:
            assert content.pixels is not None
            image = square_of(content.pixels, content.array_format, config)
        data = encode(image.pixels, config.image_format, config.jpeg_quality)
    except Rejected as rejected:
        return rejected
    except MemoryError as error:
        raise StorageError(f"cannot decode {mask(source_uri)}: this machine is out of memory") from error
    is_compared = content.file is not None and not config.keep_duplicates
    signature = signature_of(image.pixels) if is_compared else None
    return _ShardImage(data, image.format, image.width, image.height, signature)


def _complete(row: dict[str, Any], made: _ShardImage | Rejected, image_ids: set[str], config: IngestConfig) -> None:
    """Accept `row` with the image `made`, and add it to the `image_ids` of the shard; or reject it."""
    image_id = identity(row["sha256"], row["fingerprint"], config.keep_duplicates)[:IMAGE_ID_DIGITS]
    if isinstance(made, Rejected):
        _reject(row, made)
    elif image_id in image_ids:
        row.update(duplicate_of=image_id)
        _reject(row, Rejected("duplicate", DUPLICATE_DETAIL))
    else:
        image_ids.add(image_id)
        row.update(status="accepted", image_id=image_id, look=made.signature)
        row.update(stored_bytes=len(made.data), format=made.format, width=made.width, height=made.height)


def _reject(row: dict[str, Any], rejected: Rejected) -> None:
    """Reject `row`; of a forgotten record, only the position is kept."""
    row.update(status="rejected", reason=rejected.reason, detail=rejected.detail)
    if rejected.reason == FORGOTTEN:
        row.update({name: CLEARED_VALUES.get(name) for name in row if name != "record"})


def _sample(row: dict[str, Any], made: _ShardImage, config: IngestConfig) -> Sample:
    """The image and the metadata of an accepted `row`, as members of the tar."""
    metadata = {
        **{name: row[name] for name in METADATA_COLUMNS},
        "taken_at": row["taken_at"].isoformat() if row["taken_at"] else None,
        "extra": json.loads(row["extra"]) if row["extra"] else {},
    }
    return Sample(row["image_id"], made.data, metadata, image_format=config.image_format)
