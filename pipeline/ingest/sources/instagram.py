"""The metadata that instagram-scraper leaves beside its files: ``{"GraphImages": [node, …]}``.

Nothing about a node is taken for granted: a value that is absent or of another type is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.ingest.fetch import fetch
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.file_records import not_used
from pipeline.ingest.sources.metadata import Metadata, dig, hashtags, listed, moment, parse_json, text
from pipeline.ingest.sources.tree import File

MAX_METADATA_BYTES = 256 * 2**20
"""Larger metadata is not read: it is parsed as a whole, in several times its size of memory."""


@dataclass(frozen=True)
class Post:
    """What the metadata says of one post and its files."""

    id: str | None
    metadata: Metadata
    """Without the address, which differs among its files."""
    is_video: bool
    urls: dict[str, str]
    """Address by file name, for every file that may belong to the post."""
    expected: list[str]
    """Names of the files that the scraper should have left."""

    @property
    def key(self) -> object:
        """Equal for two nodes of one post: a crawl may list a top post again."""
        return self.id or tuple(self.urls) or object()


def read_posts(file: File) -> list[Post] | None:
    """The posts in `file`; None where it is not the metadata of a dump.

    A file that cannot be read or parsed is reported in one line and gives None too. Raises StorageError where the
    machine is at fault.
    """
    try:
        document = parse_json(fetch(file.uri, MAX_METADATA_BYTES))
    except Rejected as error:
        not_used(file, error.detail)
        return None
    except (ValueError, MemoryError) as error:
        not_used(file, str(error))
        return None
    nodes = document.get("GraphImages") if isinstance(document, dict) else None
    if not isinstance(nodes, list):
        return None
    return [_post(node) for node in nodes if isinstance(node, dict)]


def _post(node: dict[str, Any]) -> Post:
    caption = text(dig(node, "edge_media_to_caption", "edges", 0, "node", "text"))
    named, shown = _by_name(listed(node.get("urls"))), _by_name([node.get("display_url")])
    return Post(
        id=text(node.get("id")),
        metadata=Metadata(
            shortcode=text(node.get("shortcode")),
            caption=caption,
            taken_at=moment(node.get("taken_at_timestamp")),
            hashtags=hashtags(listed(node.get("tags")), caption),
            extra=post_extra(node),
        ),
        is_video=node.get("is_video") is True,
        urls={**named, **shown},
        expected=list(named or shown),
    )


def post_extra(node: dict[str, Any]) -> dict[str, Any]:
    """likes, owner_id and location of an Instagram node, where known."""
    likes = dig(node, "edge_media_preview_like", "count")
    known = {
        "likes": likes if isinstance(likes, int) and abs(likes) < 2**63 else None,
        "owner_id": text(dig(node, "owner", "id")),
        "location": text(dig(node, "location", "name")),
    }
    return {name: value for name, value in known.items() if value is not None}


def _by_name(urls: list[Any]) -> dict[str, str]:
    """The addresses among `urls` by the name under which the scraper stores them: the last part, without the query."""
    named = {url.partition("?")[0].rpartition("/")[2]: url for url in map(text, urls) if url}
    return {name: url for name, url in named.items() if name not in {"", ".", ".."}}
