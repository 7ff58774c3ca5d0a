"""Posts of Instagram from the scrapers of Apify: JSON, JSON lines, or CSV with columns such as ``images/0``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.ingest.sources.metadata import (
    MAX_ITEMS,
    Metadata,
    list_or_empty,
    parse_hashtags,
    parse_time,
    storable_extra,
    text_or_none,
)
from pipeline.ingest.sources.posts.post import Media, Post
from pipeline.ingest.sources.tables.addresses import addresses_in

EXTRA = ("url", "type", "alt", "likesCount", "commentsCount", "locationName")
"""Further fields that are kept."""


def is_post(row: Mapping[str, Any]) -> bool:
    """Return whether a row of a table is a post from Apify."""
    return "shortCode" in row and ("displayUrl" in row or "images" in row or "images/0" in row)


def read_post(row: Mapping[str, Any]) -> Post | None:
    """Return the post in a row; None if it has no short code."""
    fields = nested(row)
    code = text_or_none(fields.get("shortCode"))
    if not code:
        return None
    caption = text_or_none(fields.get("caption"))
    return Post(
        code=code,
        media=_media(fields),
        metadata=Metadata(
            caption=caption,
            taken_at=parse_time(fields.get("timestamp")),
            hashtags=parse_hashtags(fields.get("hashtags"), caption),
            extra=storable_extra({name: fields[name] for name in EXTRA if name in fields}),
        ),
        author=text_or_none(fields.get("ownerUsername")),
    )


def _media(fields: Mapping[str, Any]) -> list[Media]:
    """Return the images of a post: those of its children; without children, its list; without a list, itself."""
    children = [child for child in list_or_empty(fields.get("childPosts")) if isinstance(child, Mapping)]
    of_children = [Media(_address(child.get("displayUrl")), child.get("type") == "Video") for child in children]
    if any(media.url for media in of_children):
        return of_children
    is_video = fields.get("type") == "Video"
    images = [Media(url, is_video) for url in addresses_in(fields.get("images"))]
    return images or [Media(_address(fields.get("displayUrl")), is_video)]


def _address(value: Any) -> str | None:
    return next(iter(addresses_in(value)), None)


def nested(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `row` with lists and objects instead of columns such as ``childPosts/0/displayUrl``.

    Empty cells of such columns are left out; a list has at most MAX_ITEMS items.
    """
    fields: dict[str, Any] = {}
    for name, value in row.items():
        first, *path = str(name).split("/", 3)
        if not path:
            fields[name] = value
        elif value not in (None, ""):
            _put(fields, first, path, value)
    return {name: _without_numbers(value) for name, value in fields.items()}


def _put(fields: dict[str, Any], first: str, path: list[str], value: Any) -> None:
    """Put `value` at `path` below the field `first`; the items of a list are keyed by their numbers."""
    place = fields.setdefault(first, {})
    for step in path[:-1]:
        if not isinstance(place, dict):
            return
        place = place.setdefault(step, {})
    if isinstance(place, dict):
        place[path[-1]] = value


def _without_numbers(value: Any) -> Any:
    """Return the values of an object whose keys are numbers as a list."""
    if not isinstance(value, dict):
        return value
    items = {key: _without_numbers(item) for key, item in value.items()}
    if items and all(key.isascii() and key.isdigit() and len(key) <= 4 for key in items):
        return [items[key] for key in sorted(items, key=int)][:MAX_ITEMS]
    return items
