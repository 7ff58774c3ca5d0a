"""Metadata that instagram-scraper writes beside its files: ``{"GraphImages": [node, …]}``.

The structure of a node is not trusted: a value that is absent or of another type is dropped.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.content import open_stream, raise_machine_fault, read_content
from pipeline.ingest.sources.file_records import (
    IMAGE_SUFFIXES,
    file_record,
    missing_record,
    report_unused_metadata,
    suffix_of,
)
from pipeline.ingest.sources.metadata import (
    Metadata,
    list_or_empty,
    parse_hashtags,
    parse_json,
    parse_time,
    storable,
    text_or_none,
    value_at,
)
from pipeline.ingest.sources.tables.json_arrays import objects_at
from pipeline.ingest.sources.tables.text_lines import utf8_stream
from pipeline.ingest.sources.tree import File, Folder
from pipeline.records import CrawlRecord

MAX_WHOLE_BYTES = 16 * 2**20
"""Maximum size in bytes of a metadata file that is parsed as a whole, which takes several times its size of memory. In
larger ones, the posts are read one at a time, by a parser that is stricter about numbers and text."""

HEAD_BYTES = 2**16
"""Number of bytes at the start of a large metadata file within which its list of posts must begin."""

_POSTS = re.compile(rb'"GraphImages"\s*:\s*\[')


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


def take_posts(files: dict[str, File]) -> list[Post] | None:
    """Remove the metadata of an instagram-scraper dump from `files` (by name); return its posts, each of them once.

    Of two nodes of a post, one that names files is preferred. Returns None if no file is such metadata.
    """
    nodes: list[Post] = []
    found = False
    for name, file in list(files.items()):
        if not name.lower().endswith(".json") or file.problem is not None:
            continue
        if (posts_in_file := read_posts(file)) is not None:
            found = True
            del files[name]
            nodes += posts_in_file
    posts: dict[object, Post] = {}
    for post in sorted(nodes, key=lambda post: not post.urls):
        posts.setdefault(post.key, post)
    return list(posts.values()) if found else None


def records(folder: Folder, files: dict[str, File], posts: list[Post]) -> Iterator[CrawlRecord]:
    """Yield the records of `files` with the metadata of their posts, if any; then the files that `posts` lack."""
    post_of: dict[str, Post] = {}
    for post in posts:
        for name in post.urls:
            post_of.setdefault(name, post)
    missing = {name: post for post in posts for name in post.expected}
    for name, file in files.items():
        stored_name = storable(name)
        missing.pop(stored_name, None)
        if (owner := post_of.get(stored_name)) is None:
            yield file_record(file)
            continue
        is_video = owner.is_video and suffix_of(name) not in IMAGE_SUFFIXES
        metadata = replace(owner.metadata, source_url=owner.urls.get(stored_name))
        yield file_record(file, metadata, "video" if is_video else None)
    for name, post in missing.items():
        yield missing_record(folder, name, replace(post.metadata, source_url=post.urls.get(name)))
    for post in posts:
        if not post.urls:
            yield missing_record(folder, "", post.metadata)


def read_posts(file: File) -> list[Post] | None:
    """Read the posts in `file`; return None where it is not the metadata of an instagram-scraper dump.

    What cannot be read or parsed is reported on the console. Raises StorageError for temporary faults of the machine.
    """
    posts: list[Post] = []
    try:
        if file.size is None or file.size > MAX_WHOLE_BYTES:
            return _read_large(file, posts)
        document = parse_json(read_content(file.uri, MAX_WHOLE_BYTES))
    except Rejected as error:
        report_unused_metadata(file, error.detail)
        return None
    except ValueError as error:
        report_unused_metadata(file, f"after {len(posts)} posts: {error}" if posts else str(error))
        return posts or None
    nodes = document.get("GraphImages") if isinstance(document, dict) else None
    return [_post(node) for node in nodes if isinstance(node, dict)] if isinstance(nodes, list) else None


def _read_large(file: File, posts: list[Post]) -> list[Post] | None:
    """Read the posts in `file` one at a time into `posts`; return them, or None as `read_posts` does.

    Raises ValueError where the rest of the file is invalid.
    """
    try:
        with open_stream(file.uri) as raw, io.BufferedReader(cast(Any, raw), HEAD_BYTES) as buffered:
            if not _POSTS.search(buffered.peek(HEAD_BYTES)):
                return None
            stream, _ = utf8_stream(cast(BinaryIO, buffered))
            posts.extend(_post(node) for node in objects_at(stream, "GraphImages.item") if isinstance(node, dict))
    except OSError as error:
        raise_machine_fault(file.printable_uri, error)
        raise ValueError(error.strerror or str(error)) from error
    return posts


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
