"""Posts of Instagram that Zeeschuimer captured in a browser, as JSON lines: what Instagram's own pages receive.

The same post comes in three forms: as an item of a list, as a node of the graph that older pages read, and in a short
form of newer pages, which often lacks the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.ingest.sources.metadata import (
    Metadata,
    list_or_empty,
    parse_hashtags,
    parse_time,
    storable_extra,
    text_or_none,
    value_at,
)
from pipeline.ingest.sources.posts.post import MAX_MEDIA, Media, Post
from pipeline.ingest.sources.tables.addresses import addresses_in

VIDEO = 2
"""Value of ``media_type`` for a video; 1 is a photograph, and 8 a post with several of both."""


def is_post(row: Mapping[str, Any]) -> bool:
    """Return whether a row is a post that Zeeschuimer captured."""
    return isinstance(row.get("data"), Mapping) and "source_platform" in row


def read_post(row: Mapping[str, Any]) -> Post | None:
    """Return the post in a row; None if it has no short code."""
    data = row["data"] if isinstance(row.get("data"), Mapping) else {}
    code = text_or_none(data.get("code")) or text_or_none(data.get("shortcode"))
    if not code:
        return None
    caption = text_or_none(value_at(data, "caption", "text")) or text_or_none(data.get("caption"))
    caption = caption or text_or_none(value_at(data, "edge_media_to_caption", "edges", 0, "node", "text"))
    times = (parse_time(data.get(name)) for name in ("taken_at", "taken_at_timestamp"))
    likes = data.get("like_count", value_at(data, "edge_media_preview_like", "count"))
    extra = {"likes": likes, "comments": data.get("comment_count"), "location": value_at(data, "location", "name")}
    return Post(
        code=code,
        media=_media(data),
        metadata=Metadata(
            caption=caption,
            taken_at=next((time for time in times if time is not None), None),
            hashtags=parse_hashtags(None, caption),
            extra=storable_extra({name: value for name, value in extra.items() if value is not None}),
        ),
        author=text_or_none(value_at(data, "user", "username")) or text_or_none(value_at(data, "owner", "username")),
        is_advertisement=data.get("product_type") == "ad",
    )


def _media(data: Mapping[str, Any]) -> list[Media]:
    """Return the images and videos of a post: its parts if it has several, or else itself."""
    parts = list_or_empty(data.get("carousel_media"))
    parts = parts or [
        value_at(edge, "node") for edge in list_or_empty(value_at(data, "edge_sidecar_to_children", "edges"))
    ]
    return [_image(part) for part in parts[:MAX_MEDIA] if isinstance(part, Mapping)] or [_image(data)]


def _image(part: Mapping[str, Any]) -> Media:
    """Return the image of a post or of one of its parts; of several sizes, the first is the largest."""
    candidates = (
        value_at(part, "image_versions2", "candidates", 0, "url"), part.get("display_url"), part.get("display_uri")
    )  # fmt: skip
    url = next((addresses[0] for candidate in candidates if (addresses := addresses_in(candidate))), None)
    kind = text_or_none(part.get("__typename")) or ""
    return Media(url, part.get("media_type") == VIDEO or part.get("is_video") is True or kind.endswith("Video"))
