"""The records and crawls that the stages exchange, and the Arrow schemas in which they are stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import ColorMode, ImageForm, ImageFormat

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
"""Pixels of an image: uint8, height x width x channels unless a docstring gives another shape."""

TIMESTAMP = pa.timestamp("ms", tz="UTC")

RECORD_FIELDS = [
    pa.field("record", pa.int64(), metadata={"doc": "position of the record in the plan of the crawl, from 0"}),
    pa.field(
        "source_uri",
        pa.string(),
        metadata={
            "doc": "absolute path (file:// if it is not valid UTF-8), s3:// or http(s):// address; #index in arrays, "
            "#member=name&offset=bytes&size=bytes in archives, #row=number for a table row without an address"
        },
    ),
    pa.field(
        "file_name", pa.string(), metadata={"doc": "name of the file in the crawl; empty for a post that names no file"}
    ),
    pa.field("shortcode", pa.string(), metadata={"doc": "short code of the post, if the crawl has one"}),
    pa.field("caption", pa.string(), metadata={"doc": "text of the post, as crawled"}),
    pa.field("taken_at", TIMESTAMP, metadata={"doc": "time of the post"}),
    pa.field("hashtags", pa.list_(pa.string()), metadata={"doc": "hashtags of the post, without #"}),
    pa.field("source_url", pa.string(), metadata={"doc": "URL from which the scraper downloaded the image"}),
    pa.field("extra", pa.string(), metadata={"doc": "further fields of the crawl, as a JSON object"}),
    pa.field(
        "fingerprint", pa.string(), metadata={"doc": "path relative to the source, and size of the file; or its URL"}
    ),
    pa.field(
        "label",
        pa.string(),
        metadata={"doc": "true class of the image, if the source has labels; never used in training"},
    ),
]

PLAN_SCHEMA = pa.schema(
    [
        *RECORD_FIELDS,
        pa.field(
            "problem", pa.string(), metadata={"doc": "reason to reject the record, if it was known at planning time"}
        ),
        pa.field("problem_detail", pa.string(), metadata={"doc": "explanation of the problem, as a sentence"}),
        pa.field("array_format", pa.string(), metadata={"doc": "IDX | NPZ if the record is an image of an array file"}),
        pa.field("array_sha256", pa.string(), metadata={"doc": "SHA-256 of the array file, hexadecimal"}),
        pa.field("array_index", pa.int64(), metadata={"doc": "index of the image in its array, from 0"}),
    ]
)
"""Schema of ``plan.parquet``, which has one row per record of the crawl."""

SHARD_SCHEMA = pa.schema(
    [
        *RECORD_FIELDS,
        pa.field("status", pa.string(), metadata={"doc": "accepted | rejected"}),
        pa.field("reason", pa.string(), metadata={"doc": "reason for the rejection, one of RejectReason"}),
        pa.field("detail", pa.string(), metadata={"doc": "explanation of the reason, as a sentence"}),
        pa.field("image_id", pa.string(), metadata={"doc": "key of the image in the shard, derived from its content"}),
        pa.field("look", pa.binary(), metadata={"doc": "perceptual signature of a decoded image, see signature_of"}),
        pa.field(
            "sha256",
            pa.string(),
            metadata={"doc": "SHA-256 of the file, or of the array file and the index; hexadecimal"},
        ),
        pa.field("duplicate_of", pa.string(), metadata={"doc": "image_id of the image that is kept instead"}),
        pa.field("bytes", pa.int64(), metadata={"doc": "size of the source file in bytes"}),
        pa.field("stored_bytes", pa.int64(), metadata={"doc": "size of the image file in the shard, in bytes"}),
        pa.field("format", pa.string()),
        pa.field("width", pa.int32(), metadata={"doc": "width in px, upright, before cropping"}),
        pa.field("height", pa.int32(), metadata={"doc": "height in px, upright, before cropping"}),
    ]
)
"""Schema of ``shard-NNNNNN.parquet``, which has one row per record of the shard, accepted or rejected."""


CHANNELS: dict[ColorMode, int] = {"rgb": 3, "grayscale": 1}
"""Number of channels of an image, by colour mode."""


@dataclass(frozen=True)
class CrawlRecord:
    """One item of a crawl that should become an image."""

    source_uri: str
    file_name: str
    shortcode: str | None = None
    caption: str | None = None
    taken_at: datetime | None = None
    hashtags: list[str] = field(default_factory=list)
    source_url: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """Reason to reject the record, such as ``missing_file``, if it is known from the source."""
    problem_detail: str | None = None
    """Explanation of the problem, as a sentence."""
    label: str | None = None
    """True class of the image; used only for evaluation."""
    array_format: str | None = None
    """``IDX`` or ``NPZ`` if the record is an image of an array file; the next two fields are set then, too."""
    array_sha256: str | None = None
    """SHA-256 of the array file, hexadecimal."""
    array_index: int | None = None
    """Index of the image in its array, from 0."""
    fingerprint: str = ""
    """Value that changes when the file changes, without reading it: its path relative to the source, and its size; or
    the URL."""


@dataclass(frozen=True)
class Crawl:
    """Summary of a complete crawl in storage, as stored in ``crawl.json``."""

    collection: str
    crawl_id: str
    n_shards: int
    records: int
    accepted: int
    rejected: dict[str, int]
    """Number of rejected records by reason; `accepted` and these numbers add up to `records`."""
    image_size: int
    """Side of the square images in px."""
    digest: str
    """SHA-256 of the image form and of the image ids in order; crawls with equal digests hold the same images."""
    color_mode: ColorMode = "rgb"
    image_format: ImageFormat = "jpeg"
    keep_duplicates: bool = False
    statistics: dict[str, float] = field(default_factory=dict, compare=False)
    """Bytes, formats, image sizes and processing rates, by name; ignored in comparisons, because rates vary."""

    @property
    def image_form(self) -> ImageForm:
        """Image size in px, colour mode, file format, and whether duplicates are kept, as in `IngestConfig`."""
        return self.image_size, self.color_mode, self.image_format, self.keep_duplicates
