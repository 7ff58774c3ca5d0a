"""Metadata that instagram-scraper writes beside its files: ``{"GraphImages": [node, …]}``.

The structure of a node is not trusted: a value that is absent or of another type is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.content import read_content
from pipeline.ingest.sources.file_records import report_unused_metadata
from pipeline.ingest.sources.metadata import (
    Metadata,
    list_or_empty,
    parse_hashtags,
    parse_json,
    parse_time,
    text_or_none,
    value_at,
)
from pipeline.ingest.sources.tree import File

MAX_METADATA_BYTES = 256 * 2**20
"""Maximum size of a metadata file in bytes: it is parsed as a whole, which takes several times its size of memory."""


@dataclass(frozen=True)
class Post:
    """One post of the metadata, and its files."""

    id: str | None
    metadata: Metadata
    """Metadata of the post without the address, which differs among its files."""
    is_video: bool
    urls: dict[str, str]
    """Address by file name, for every file that may belong to the post."""
    expected: list[str]
    """Names of the files that the scraper should have stored."""

    @property
    def key(self) -> object:
        """Key that is equal for two nodes of the same post: a crawl may list a top post again."""
        return self.id or tuple(self.urls) or object()


def read_posts(file: File) -> list[Post] | None:
    """Read the posts in `file`; return None where it is not the metadata of an instagram-scraper dump.

    A file that cannot be read or parsed is reported on the console and gives None, too. Raises StorageError for
    temporary faults of the machine.
    """
    try:
        document = parse_json(read_content(file.uri, MAX_METADATA_BYTES))
    except Rejected as error:
        report_unused_metadata(file, error.detail)
        return None
    except (ValueError, MemoryError) as error:
        report_unused_metadata(file, str(error))
        return None
    nodes = document.get("GraphImages") if isinstance(document, dict) else None
    if not isinstance(nodes, list):
        return None
    return [_post(node) for node in nodes if isinstance(node, dict)]


def _post(node: dict[str, Any]) -> Post:
    caption = text_or_none(value_at(node, "edge_media_to_caption", "edges", 0, "node", "text"))
    media, display = _by_name(list_or_empty(node.get("urls"))), _by_name([node.get("display_url")])
    return Post(
        id=text_or_none(node.get("id")),
        metadata=Metadata(
            shortcode=text_or_none(node.get("shortcode")),
            caption=caption,
            taken_at=parse_time(node.get("taken_at_timestamp")),
            hashtags=parse_hashtags(list_or_empty(node.get("tags")), caption),
            extra=post_extra(node),
        ),
        is_video=node.get("is_video") is True,
        urls={**media, **display},
        expected=list(media or display),
    )


def post_extra(node: dict[str, Any]) -> dict[str, Any]:
    """Return likes, owner_id and location of an Instagram node, as far as they are known."""
    likes = value_at(node, "edge_media_preview_like", "count")
    values = {
        "likes": likes if isinstance(likes, int) and abs(likes) < 2**63 else None,
        "owner_id": text_or_none(value_at(node, "owner", "id")),
        "location": text_or_none(value_at(node, "location", "name")),
    }
    return {name: value for name, value in values.items() if value is not None}


def _by_name(urls: list[Any]) -> dict[str, str]:
    """Return the addresses among `urls` by the name under which the scraper stores them: the last part of the path."""
    by_name = {url.partition("?")[0].rpartition("/")[2]: url for url in map(text_or_none, urls) if url}
    return {name: url for name, url in by_name.items() if name not in {"", ".", ".."}}
