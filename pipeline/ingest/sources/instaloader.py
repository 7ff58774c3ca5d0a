"""Hashtag dumps of instaloader: ``2020-09-13_12-26-40_UTC{.jpg,_1.jpg,.mp4,.txt,.json.xz}``, named by the post's time.

The node of a post is in its ``.json.xz`` file. Without one, the caption is in ``.txt`` and the time in the file name.
Two posts of the same second share their names, so that image and metadata may not match; the dump does not allow to
detect this.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby

from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.content import read_content
from pipeline.ingest.sources.file_records import (
    IMAGE_SUFFIXES,
    NO_METADATA,
    VIDEO_SUFFIXES,
    file_record,
    missing_record,
    single_line,
    suffix_of,
)
from pipeline.ingest.sources.instagram import post_extra
from pipeline.ingest.sources.metadata import (
    Metadata,
    list_or_empty,
    parse_hashtags,
    parse_json,
    parse_time,
    text_or_none,
    value_at,
)
from pipeline.ingest.sources.tree import File, Folder
from pipeline.records import CrawlRecord

MAX_NODE_BYTES = 64 * 2**20
"""Maximum size of the metadata of one post in bytes, decompressed."""

MAX_XZ_MEMORY = 128 * 2**20
"""Maximum memory for decompressing a file in bytes; instaloader's preset needs a tenth of it."""

MAX_CAPTION_BYTES = 2**20
"""Maximum size of a caption file in bytes."""

MAX_CHILDREN = 100
"""Maximum number of parts of a carousel; those of Instagram have up to 20."""

_POST = re.compile(r"(?P<post>\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_UTC)(?:_(?P<child>\d{1,3}))?(?P<suffix>\.[A-Za-z0-9.]+)")
_OTHER_METADATA = re.compile(r".*_UTC_comments\.json(\.xz)?|.*_UTC_location\.txt|iterator_.*\.json(\.xz)?|.*\.json\.xz")
"""Names of metadata files that do not describe the image of a post."""
_PROFILE = re.compile(r".*_profile_pic\.\w+")
_NODE_SUFFIXES = (".json.xz", ".json")
_CAPTION_SUFFIX = ".txt"


@dataclass(frozen=True)
class _Part:
    """A file of a post."""

    post: str
    child: str | None
    """Position in a carousel, as written in the file name."""
    suffix: str
    file: File


@dataclass(frozen=True)
class _Node:
    """Metadata of one post, and the addresses of its files."""

    metadata: Metadata = NO_METADATA
    url: str | None = None
    is_video: bool = False
    children: list[tuple[str | None, bool]] = field(default_factory=list)
    """Address of each part of a carousel, and whether it is a video."""


def take_files(files: dict[str, File]) -> dict[str, File]:
    """Remove the files of instaloader from `files` and return them by name; none if no file is named like a post."""
    post_suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES | {".json", ".xz"}
    if not any(_POST.fullmatch(name) and suffix_of(name) in post_suffixes for name in files):
        return {}
    patterns = (_POST, _OTHER_METADATA, _PROFILE)
    return {name: files.pop(name) for name in list(files) if any(pattern.fullmatch(name) for pattern in patterns)}


def records(folder: Folder, files: dict[str, File]) -> Iterator[CrawlRecord]:
    """Yield the records of `files`, which `take_files` returned for `folder`, post by post."""
    matches = ((match, files[name]) for name in files if (match := _POST.fullmatch(name)))
    parts = (_Part(match["post"], match["child"], match["suffix"].lower(), file) for match, file in matches)
    for post, post_parts in groupby(parts, key=lambda part: part.post):
        yield from _post(folder, post, list(post_parts))
    for name, file in files.items():
        if _PROFILE.fullmatch(name):
            yield file_record(file, problem="profile_picture")


def _post(folder: Folder, post: str, parts: list[_Part]) -> Iterator[CrawlRecord]:
    """Yield the records of one post: broken metadata, then its files by name, then its missing files."""
    node = _Node()
    for part in parts:
        if part.suffix in _NODE_SUFFIXES:
            try:
                node = _read_node(part.file)
            except ValueError as error:
                yield file_record(part.file, problem="broken_metadata", detail=single_line(error))
    if node.metadata is NO_METADATA:
        caption_files = [part.file for part in parts if part.suffix == _CAPTION_SUFFIX]
        node = replace(node, metadata=_metadata_without_node(post, caption_files))
    media = [part for part in parts if part.suffix not in {*_NODE_SUFFIXES, _CAPTION_SUFFIX}]
    present_children = {part.child for part in media}
    video_children = {part.child for part in media if part.suffix in VIDEO_SUFFIXES}
    for part in media:
        url, is_video = _child(node, part.child)
        extra = dict(node.metadata.extra)
        if part.suffix in IMAGE_SUFFIXES and (is_video or part.child in video_children):
            extra["video_thumbnail"] = True
        yield file_record(part.file, replace(node.metadata, source_url=url, extra=extra))
    expected: list[str | None] = [str(i + 1) for i in range(len(node.children))]
    if not expected and not present_children:
        expected = [None]
    for child in expected:
        if child not in present_children:
            url, is_video = _child(node, child)
            name = f"{post}{'' if child is None else f'_{child}'}.{'mp4' if is_video else 'jpg'}"
            yield missing_record(folder, name, replace(node.metadata, source_url=url))


def _child(node: _Node, child: str | None) -> tuple[str | None, bool]:
    """Return the address of the file at position `child` of a post, and whether the post has a video there."""
    if child is not None and node.children:
        index = int(child) - 1
        return node.children[index] if 0 <= index < len(node.children) else (None, False)
    return node.url, node.is_video


def _read_node(file: File) -> _Node:
    """Read the metadata of a post from `file`.

    Raises ValueError where it cannot be read or parsed, StorageError for temporary faults of the machine.
    """
    if file.problem is not None:
        raise ValueError(file.problem)
    try:
        data = read_content(file.uri, MAX_NODE_BYTES)
    except Rejected as error:
        raise ValueError(error.detail) from error
    document = parse_json(_decompress(data) if file.name.lower().endswith(".xz") else data)
    node = document.get("node", document) if isinstance(document, dict) else None
    if not isinstance(node, dict):
        raise ValueError("expected a JSON object with the node of a post")
    caption = text_or_none(value_at(node, "edge_media_to_caption", "edges", 0, "node", "text"))
    caption = caption or text_or_none(node.get("caption")) or text_or_none(value_at(node, "caption", "text"))
    edges = list_or_empty(value_at(node, "edge_sidecar_to_children", "edges"))
    children = [value_at(edge, "node") for edge in edges]
    times = (parse_time(node.get(name)) for name in ("date", "taken_at_timestamp", "taken_at"))
    return _Node(
        Metadata(
            shortcode=text_or_none(node.get("shortcode")) or text_or_none(node.get("code")),
            caption=caption,
            taken_at=next((time for time in times if time is not None), None),
            hashtags=parse_hashtags(None, caption),
            extra=post_extra(node),
        ),
        url=text_or_none(node.get("display_url")) or text_or_none(node.get("display_src")),
        is_video=node.get("is_video") is True,
        children=[
            (text_or_none(value_at(child, "display_url")), value_at(child, "is_video") is True)
            for child in children[:MAX_CHILDREN]
        ],
    )


def _decompress(data: bytes) -> bytes:
    try:
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_XZ_MEMORY)
        content = decompressor.decompress(data, MAX_NODE_BYTES + 1)
    except lzma.LZMAError as error:
        raise ValueError(f"not an xz file ({error})") from error
    if len(content) > MAX_NODE_BYTES:
        raise ValueError(f"more than {MAX_NODE_BYTES} bytes once decompressed")
    if not decompressor.eof:
        raise ValueError("the xz file is cut off")
    return content


def _metadata_without_node(post: str, caption_files: list[File]) -> Metadata:
    """Return the metadata in the name of a post and in its caption files."""
    caption = None
    for file in caption_files:
        try:
            content = read_content(file.uri, MAX_CAPTION_BYTES) if file.problem is None else b""
        except Rejected:
            continue
        caption = text_or_none(content.decode("utf-8", "backslashreplace").strip()) or caption
    try:
        taken_at = datetime.strptime(post, "%Y-%m-%d_%H-%M-%S_UTC").replace(tzinfo=UTC)
    except ValueError:
        taken_at = None
    return Metadata(caption=caption, taken_at=taken_at, hashtags=parse_hashtags(None, caption))
