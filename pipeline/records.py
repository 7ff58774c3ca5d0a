"""What the stages hand each other, and the Arrow schemas in which it is stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa

from pipeline.config import ColorMode, ImageForm, ImageFormat

TIMESTAMP = pa.timestamp("ms", tz="UTC")

RECORD_FIELDS = [
    pa.field("record", pa.int64(), metadata={"doc": "position in the crawl's plan, from 0"}),
    pa.field(
        "source_uri",
        pa.string(),
        metadata={
            "doc": "absolute path, file:// where UTF-8 cannot hold it, s3:// or http(s)://; #index in arrays, "
            "#member=name&offset=bytes&size=bytes in tars, #row=number for a row of a table without an address"
        },
    ),
    pa.field("file_name", pa.string(), metadata={"doc": "in the crawl; empty for a post that names no file"}),
    pa.field("shortcode", pa.string(), metadata={"doc": "the post's short code, where the crawl has one"}),
    pa.field("caption", pa.string(), metadata={"doc": "the post's text, as crawled"}),
    pa.field("taken_at", TIMESTAMP, metadata={"doc": "when the post was made"}),
    pa.field("hashtags", pa.list_(pa.string()), metadata={"doc": "of the post, without #"}),
    pa.field("source_url", pa.string(), metadata={"doc": "where the crawler got it from"}),
    pa.field("extra", pa.string(), metadata={"doc": "further columns of the crawl, as a JSON object"}),
    pa.field("fingerprint", pa.string(), metadata={"doc": "place in the source, wherever that lies, and size; or URL"}),
    pa.field("label", pa.string(), metadata={"doc": "true class, where the source has one; never seen by training"}),
]

PLAN_SCHEMA = pa.schema(
    [
        *RECORD_FIELDS,
        pa.field("problem", pa.string(), metadata={"doc": "a reason to reject that was known at planning time"}),
        pa.field("problem_detail", pa.string(), metadata={"doc": "that reason in words"}),
        pa.field("array_format", pa.string(), metadata={"doc": "IDX | NPZ where the record is an image of an array"}),
        pa.field("array_sha256", pa.string(), metadata={"doc": "of the array's file, hexadecimal"}),
        pa.field("array_index", pa.int64(), metadata={"doc": "place of the image in its array, from 0"}),
    ]
)
"""``plan.parquet``: every record of the crawl."""

SHARD_SCHEMA = pa.schema(
    [
        *RECORD_FIELDS,
        pa.field("status", pa.string(), metadata={"doc": "accepted | rejected"}),
        pa.field("reason", pa.string(), metadata={"doc": "why it was rejected, one of RejectReason"}),
        pa.field("detail", pa.string(), metadata={"doc": "the reason in words"}),
        pa.field("image_id", pa.string(), metadata={"doc": "key in the shard; from the content, so stable"}),
        pa.field(
            "look", pa.binary(), metadata={"doc": "of an image that was decoded: pHash and thumbnail, see look_of"}
        ),
        pa.field(
            "sha256", pa.string(), metadata={"doc": "of the file's bytes; of an array's file and index; hexadecimal"}
        ),
        pa.field("duplicate_of", pa.string(), metadata={"doc": "image_id of the image that was kept instead"}),
        pa.field("bytes", pa.int64(), metadata={"doc": "of the file that was read"}),
        pa.field("stored_bytes", pa.int64(), metadata={"doc": "of the image in the shard"}),
        pa.field("format", pa.string()),
        pa.field("width", pa.int32(), metadata={"doc": "px, upright, before cropping"}),
        pa.field("height", pa.int32(), metadata={"doc": "px, upright, before cropping"}),
    ]
)
"""``shard-NNNNNN.parquet``: one row per record of the shard, accepted or rejected."""


CHANNELS: dict[ColorMode, int] = {"rgb": 3, "grayscale": 1}
"""Of an image, by its colour mode."""


@dataclass(frozen=True)
class CrawlRecord:
    """One thing that a crawl holds and that should become an image."""

    source_uri: str
    file_name: str
    shortcode: str | None = None
    caption: str | None = None
    taken_at: datetime | None = None
    hashtags: list[str] = field(default_factory=list)
    source_url: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """A reason to reject it that its source already knows, such as ``missing_file``."""
    problem_detail: str | None = None
    """That reason in words."""
    label: str | None = None
    """The true class of the image: for evaluation alone."""
    array_format: str | None = None
    """``IDX`` or ``NPZ`` for an image of an array file; the next two fields are set then, too."""
    array_sha256: str | None = None
    array_index: int | None = None
    fingerprint: str = ""
    """Tells this record from another state of it without reading it: its name within the source, and its size."""


@dataclass(frozen=True)
class Crawl:
    """A complete crawl in storage: what later stages need to know of it."""

    collection: str
    crawl_id: str
    n_shards: int
    records: int
    accepted: int
    rejected: dict[str, int]
    """Number of rejected records by reason; with `accepted` it sums to `records`."""
    image_size: int
    digest: str
    """SHA-256 over the form of the images and their ids in order: two crawls with one digest hold the same images."""
    color_mode: ColorMode = "rgb"
    image_format: ImageFormat = "jpeg"
    keep_duplicates: bool = False
    statistics: dict[str, float] = field(default_factory=dict, compare=False)
    """Bytes, formats, sizes and rates, by name. The same crawl has other rates another day."""

    @property
    def image_form(self) -> ImageForm:
        """As `IngestConfig.image_form`."""
        return self.image_size, self.color_mode, self.image_format, self.keep_duplicates
