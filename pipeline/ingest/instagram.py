"""The metadata that instagram-scraper leaves beside its files: ``{"GraphImages": [node, …]}``.

Nothing about a node is taken for granted: a value that is absent or of another type is left out.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.ingest.fetch import raise_machine_fault
from pipeline.ingest.text import storable
from pipeline.progress import say

MAX_METADATA_BYTES = 256 * 2**20
"""Larger metadata is not read: it is parsed as a whole, in several times its size of memory."""

HASHTAG = re.compile(r"#(\w{1,150})")


@dataclass(frozen=True)
class Post:
    """What the metadata says of one post and its files."""

    id: str | None
    shortcode: str | None
    caption: str | None
    taken_at: datetime | None
    hashtags: list[str]
    is_video: bool
    urls: dict[str, str]
    """Address by file name, for every file that may belong to the post."""
    expected: list[str]
    """Names of the files that the scraper should have left."""
    extra: dict[str, Any]
    """likes, owner_id and location, where known."""

    @property
    def key(self) -> object:
        """Equal for two nodes of one post: a crawl may list a top post again."""
        return self.id or tuple(self.urls) or object()


def read_posts(path: Path) -> list[Post] | None:
    """The posts in the file `path`; None where it is not the metadata of a dump.

    A file that cannot be read or parsed is reported in one line and gives None too. Raises StorageError where the
    machine is at fault.
    """
    try:
        size = path.stat().st_size
        if size > MAX_METADATA_BYTES:
            raise ValueError(f"{size} bytes, at most {MAX_METADATA_BYTES} are read")
        document = json.loads(path.read_bytes(), parse_int=_number)
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, OSError):
            raise_machine_fault(storable(str(path)), error)
        say("ingest", storable(f"{path} is not used as metadata: {' '.join(str(error).split())[:200]}"))
        return None
    nodes = document.get("GraphImages") if isinstance(document, dict) else None
    if not isinstance(nodes, list):
        return None
    return [_post(node) for node in nodes if isinstance(node, dict)]


def _post(node: dict[str, Any]) -> Post:
    caption = _text(_dig(node, "edge_media_to_caption", "edges", 0, "node", "text"))
    tags = [_text(tag) for tag in _list(node.get("tags"))]
    listed, shown = _by_name(_list(node.get("urls"))), _by_name([node.get("display_url")])
    return Post(
        id=_text(node.get("id")),
        shortcode=_text(node.get("shortcode")),
        caption=caption,
        taken_at=_time(node.get("taken_at_timestamp")),
        hashtags=[tag for tag in tags if tag] or HASHTAG.findall((caption or "").lower()),
        is_video=node.get("is_video") is True,
        urls={**listed, **shown},
        expected=list(listed or shown),
        extra=_extra(node),
    )


def _extra(node: dict[str, Any]) -> dict[str, Any]:
    likes = _dig(node, "edge_media_preview_like", "count")
    known = {
        "likes": likes if isinstance(likes, int) and abs(likes) < 2**63 else None,
        "owner_id": _text(_dig(node, "owner", "id")),
        "location": _text(_dig(node, "location", "name")),
    }
    return {name: value for name, value in known.items() if value is not None}


def _by_name(urls: list[Any]) -> dict[str, str]:
    """The addresses among `urls` by the name under which the scraper stores them: the last part, without the query."""
    named = {url.partition("?")[0].rpartition("/")[2]: url for url in map(_text, urls) if url}
    return {name: url for name, url in named.items() if name not in {"", ".", ".."}}


def _number(digits: str) -> int | float:
    """A whole number of the JSON; Python refuses to read very long ones, and none of those means anything here."""
    return int(digits) if len(digits) <= 20 else float(digits)


def _dig(value: Any, *path: str | int) -> Any:
    """The value at `path` inside nested JSON, None where there is no such path."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _text(value: Any) -> str | None:
    return storable(value) if isinstance(value, str) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _time(value: Any) -> datetime | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None
