"""Posts of Instagram that 4CAT exported, as CSV or as JSON lines with the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pipeline.ingest.sources.file_records import VIDEO_SUFFIXES, suffix_of
from pipeline.ingest.sources.metadata import Metadata, parse_hashtags, parse_time, storable_extra, text_or_none
from pipeline.ingest.sources.posts.post import Media, Post
from pipeline.ingest.sources.tables.addresses import addresses_in

COLUMNS = frozenset({"thread_id", "body", "image_urls"})
"""Columns by which an export is recognised."""

EXTRA = (
    "url", "media_type", "num_likes", "num_comments", "play_count", "location_name", "location_latlong", "verified",
    "collected_from_url",
)  # fmt: skip
"""Further columns that are kept."""


def is_post(row: Mapping[str, Any]) -> bool:
    """Return whether a row of a table is a post that 4CAT exported."""
    return row.keys() >= COLUMNS


def read_post(row: Mapping[str, Any]) -> Post | None:
    """Return the post in a row; None if it has no short code."""
    code = text_or_none(row.get("id")) or text_or_none(row.get("thread_id"))
    if not code:
        return None
    images, media = addresses_in(row.get("image_urls")), addresses_in(row.get("media_urls"))
    only_video = row.get("media_type") == "video"
    videos = [only_video or (i < len(media) and _is_video(media[i])) for i in range(len(images))]
    caption = text_or_none(row.get("body"))
    times = (parse_time(row.get(name)) for name in ("timestamp", "unix_timestamp"))
    return Post(
        code=code,
        media=[Media(image, is_video) for image, is_video in zip(images, videos, strict=True)]
        or [Media(None, only_video or any(map(_is_video, media)))],
        metadata=Metadata(
            caption=caption,
            taken_at=next((time for time in times if time is not None), None),
            hashtags=parse_hashtags(row.get("hashtags"), caption),
            extra=storable_extra({name: row[name] for name in EXTRA if name in row}),
        ),
        author=text_or_none(row.get("author")),
    )


def _is_video(url: str) -> bool:
    return suffix_of(urlsplit(url).path) in VIDEO_SUFFIXES
