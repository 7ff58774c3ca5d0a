"""One task of ingest: the records of one shard become its tar and its rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.config import IngestConfig
from pipeline.errors import StorageError
from pipeline.ingest.download.host_limits import Exchange
from pipeline.ingest.download.request import credentials, without_credentials
from pipeline.ingest.fetch import fetch_all
from pipeline.ingest.forget.names import FORGOTTEN, FORGOTTEN_DETAIL, LEFT, NO_NAMES, Names, is_forgotten
from pipeline.ingest.images import DecodedImage, decode_square, encode, square_of
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.repeats.dedup import DUPLICATE_DETAIL, IMAGE_ID_DIGITS, Known, identity, known_as
from pipeline.ingest.repeats.near_duplicates import look_of
from pipeline.ingest.sources.labelled_arrays import read_record, record_digest
from pipeline.paths import CrawlPaths
from pipeline.records import SHARD_SCHEMA
from pipeline.shards import Sample, publish_shard, read_shard
from pipeline.storage import Storage, read_table, write_table

METADATA_COLUMNS = (
    "image_id", "source_uri", "file_name", "shortcode", "caption", "hashtags", "source_url", "label", "width", "height",
)  # fmt: skip
"""Columns that go as they are into an image's JSON; ``taken_at`` (ISO 8601) and ``extra`` join them."""

UNREACHABLE = "unreachable"
"""The one reason to reject that another attempt may remove."""


@dataclass(frozen=True)
class _Made:
    """What a file or a record of an array became."""

    data: bytes
    """The image file for the shard."""
    format: str
    width: int
    height: int
    look: bytes | None
    """As `look_of` says; None where repeats are kept, and for a record of an array, which is nobody's repost."""


def build_shard(
    storage: Storage,
    paths: CrawlPaths,
    index: int,
    records: pa.Table,
    known: Known,
    config: IngestConfig,
    limits: Exchange | None = None,
    forgotten: Names = NO_NAMES,
) -> int:
    """Fetch, decode and publish the `records` (PLAN_SCHEMA) of shard `index`; the number of accepted images.

    Files that are `known` from earlier crawls or `forgotten` are not decoded. The tar is published first and the rows
    last: where the rows are, the shard is done. The same records over the same files give the same bytes, however
    often this runs and in whichever order downloads end. `limits` are those of the hosts that are downloaded from; by
    default they hold within this task alone.

    Raises StorageError where the machine is at fault, and another attempt may succeed.
    """
    plan = records.to_pylist()
    rows = [dict.fromkeys(SHARD_SCHEMA.names) | record for record in plan]
    samples = _ingest(plan, rows, dict(enumerate(rows)), {}, known, config, limits, forgotten)
    _publish(storage, paths, index, rows, samples)
    return sum(row["status"] == "accepted" for row in rows)


def rebuild_shard(
    storage: Storage,
    paths: CrawlPaths,
    index: int,
    records: pa.Table,
    known: Known,
    config: IngestConfig,
    limits: Exchange | None = None,
    forgotten: Names = NO_NAMES,
) -> int:
    """Try the unreachable records of the built shard `index` again, and only them; the number of new images.

    What the shard has stays in it, before a repeat of it that is reached now. Nothing is written where no record was
    reached. The arguments, and what is raised, are those of `build_shard`.
    """
    rows = read_table(storage, paths.rows(index)).to_pylist()
    again = {place: row for place, row in enumerate(rows) if row["reason"] == UNREACHABLE}
    for row in again.values():
        row.update(status=None, reason=None, detail=None)
    kept = {sample.image_id: sample for sample in read_shard(storage, paths.shard(index))}
    samples = _ingest(records.to_pylist(), rows, again, kept, known, config, limits, forgotten)
    # Of an attempt that was interrupted, the tar may hold images that the rows do not know.
    if any(row["reason"] != UNREACHABLE for row in again.values()) or len(samples) != len(kept):
        _publish(storage, paths, index, rows, samples)
    return sum(row["status"] == "accepted" for row in again.values())


def _publish(
    storage: Storage, paths: CrawlPaths, index: int, rows: list[dict[str, Any]], samples: list[Sample]
) -> None:
    publish_shard(storage, paths.shard(index), samples)
    write_table(storage, paths.rows(index), pa.Table.from_pylist(rows, SHARD_SCHEMA))


def _ingest(
    plan: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    todo: dict[int, dict[str, Any]],
    kept: dict[str, Sample],
    known: Known,
    config: IngestConfig,
    limits: Exchange | None,
    forgotten: Names,
) -> list[Sample]:
    """Complete those of `rows` that are in `todo`, by their places; all accepted images of `rows` in order.

    `plan` has the rows' records, with complete addresses; `kept` the images of rows that are accepted already.
    """
    made: dict[str, _Made | Rejected] = {}
    for place, content in _contents(plan, todo, config, limits):
        row = rows[place]
        if isinstance(content, Rejected):
            _reject(row, content)
            continue
        row.update(bytes=content.n_bytes, sha256=content.sha256)
        image = identity(content.sha256, row["fingerprint"], config.keep_duplicates)
        if is_forgotten(forgotten, content.sha256, image[:IMAGE_ID_DIGITS]):
            _reject(row, Rejected(FORGOTTEN, FORGOTTEN_DETAIL))
        elif (kept_as := known_as(known, image)) is not None:
            row.update(duplicate_of=kept_as)
            _reject(row, Rejected("duplicate", DUPLICATE_DETAIL))
        elif content.sha256 not in made:
            made[content.sha256] = _make(content, plan[place]["source_uri"], config)
    # Which of two repeats is kept is decided by the plan, not by which was there first.
    image_ids = {row["image_id"] for row in rows if row["status"] == "accepted"}
    samples = []
    for place, row in enumerate(rows):
        if place in todo and row["status"] is None:
            _complete(row, made[row["sha256"]], image_ids, config)
        if row["status"] == "accepted" and place in todo:
            samples.append(_sample(row, made[row["sha256"]], config))
        # Without its image, it is a repeat whose dropping was interrupted; it is dropped again, from the rows.
        elif row["status"] == "accepted" and row["image_id"] in kept:
            samples.append(kept[row["image_id"]])
    return samples


@dataclass(frozen=True)
class _Content:
    """A record that was read, and not decoded yet."""

    sha256: str
    n_bytes: int
    decode: Callable[[IngestConfig], DecodedImage]
    in_array: bool = False


def _contents(
    plan: list[dict[str, Any]], todo: dict[int, dict[str, Any]], config: IngestConfig, limits: Exchange | None
) -> Iterator[tuple[int, _Content | Rejected]]:
    """The contents of the records at the places `todo`, in any order, or why there are none."""
    addresses = {}
    for place, row in todo.items():
        record = plan[place]
        if record["problem"]:
            yield place, Rejected(record["problem"], record["problem_detail"] or "known from the crawl's listing")
        elif record["array_sha256"] is not None:
            yield place, _array_content(record)
        else:
            addresses[place] = record["source_uri"]
            _conceal_credentials(row, record["source_uri"])
    for place, data in fetch_all(addresses, config, limits):
        if isinstance(data, Rejected):
            yield place, data
        else:
            yield place, _Content(hashlib.sha256(data).hexdigest(), len(data), partial(decode_square, data))


def _conceal_credentials(row: dict[str, Any], address: str) -> None:
    """Take the user name and password of `address`, if it has them, out of whichever column repeats them."""
    if secret := credentials(address):
        shown = ((name, value) for name, value in row.items() if isinstance(value, str))
        row.update({name: value.replace(f"//{secret}", "//") for name, value in shown})
    if row["source_url"]:
        row.update(source_url=without_credentials(row["source_url"]))


def _array_content(record: dict[str, Any]) -> _Content | Rejected:
    try:
        pixels = read_record(record["source_uri"], record["array_index"], record["array_sha256"])
    except Rejected as rejected:
        return rejected
    sha256 = record_digest(record["array_sha256"], record["array_index"])
    return _Content(sha256, pixels.nbytes, partial(square_of, pixels, record["array_format"]), in_array=True)


def _make(content: _Content, source_uri: str, config: IngestConfig) -> _Made | Rejected:
    try:
        image = content.decode(config)
        data = encode(image.pixels, config.image_format, config.jpeg_quality)
    except Rejected as rejected:
        return rejected
    except MemoryError as error:
        address = without_credentials(source_uri)
        raise StorageError(f"cannot decode {address}: this machine is out of memory") from error
    # Where repeats are kept, nobody asks what an image looks like.
    look = None if content.in_array or config.keep_duplicates else look_of(image.pixels)
    return _Made(data, image.format, image.width, image.height, look)


def _complete(row: dict[str, Any], made: _Made | Rejected, image_ids: set[str], config: IngestConfig) -> None:
    """Accept or reject `row`, whose file became `made`, and add it to `image_ids` of the shard."""
    image_id = identity(row["sha256"], row["fingerprint"], config.keep_duplicates)[:IMAGE_ID_DIGITS]
    if isinstance(made, Rejected):
        _reject(row, made)
    elif image_id in image_ids:
        row.update(duplicate_of=image_id)
        _reject(row, Rejected("duplicate", DUPLICATE_DETAIL))
    else:
        image_ids.add(image_id)
        row.update(status="accepted", image_id=image_id, look=made.look)
        row.update(stored_bytes=len(made.data), format=made.format, width=made.width, height=made.height)


def _reject(row: dict[str, Any], rejected: Rejected) -> None:
    row.update(status="rejected", reason=rejected.reason, detail=rejected.detail)
    if rejected.reason == FORGOTTEN:
        row.update({name: LEFT.get(name) for name in row if name != "record"})


def _sample(row: dict[str, Any], made: _Made | Rejected, config: IngestConfig) -> Sample:
    assert isinstance(made, _Made)
    return Sample(row["image_id"], made.data, _metadata(row), image_format=config.image_format)


def _metadata(row: dict[str, Any]) -> dict[str, Any]:
    """What the image's JSON in the tar tells."""
    return {
        **{name: row[name] for name in METADATA_COLUMNS},
        "taken_at": row["taken_at"].isoformat() if row["taken_at"] else None,
        "extra": json.loads(row["extra"]) if row["extra"] else {},
    }
