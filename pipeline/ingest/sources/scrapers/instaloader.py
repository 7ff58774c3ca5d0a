"""Dumps of instaloader: ``2020-09-13_12-26-40_UTC{.jpg,_1.jpg,.mp4,.txt,.json.xz}``, named by the post's time or else.

The node of a post is in its ``.json.xz`` file, and the files that begin with the same name belong to the post, whatever
pattern of names the user chose. Without a node, files that are named by their time are posts of instaloader, too: then
the caption is in ``.txt`` and the time in the file name.
Two posts of the same second share their names, so that image and metadata may not match; the dump does not allow to
detect this.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

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
from pipeline.ingest.sources.metadata import (
    Metadata,
    list_or_empty,
    parse_hashtags,
    parse_json,
    parse_time,
    text_or_none,
    value_at,
)
from pipeline.ingest.sources.scrapers.instagram import post_extra
from pipeline.ingest.sources.tables.text_lines import decode_text
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
_PART = re.compile(r"(?P<post>.+?)(?:_(?P<child>\d{1,3}))?(?P<suffix>(\.json)?\.[A-Za-z0-9]+)")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[_ T](\d\d)-(\d\d)-(\d\d)")
_OTHER_METADATA = re.compile(r".*_comments\.json(\.xz)?|.*_UTC_location\.txt|iterator_.*\.json(\.xz)?|.*\.json\.xz")
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
    """Remove the files of instaloader from `files` and return them by name; none if there is no post of instaloader."""
    post_suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES | {".json", ".xz"}
    posts = {name[: -len(".json.xz")] for name in files if name.endswith(".json.xz")}
    if not posts and not any(_POST.fullmatch(name) and suffix_of(name) in post_suffixes for name in files):
        return {}
    patterns = (_POST, _OTHER_METADATA, _PROFILE)
    return {
        name: files.pop(name)
        for name in list(files)
        if any(pattern.fullmatch(name) for pattern in patterns) or _part_of(name, posts) is not None
    }


def _part_of(name: str, posts: set[str]) -> tuple[str, str | None, str] | None:
    """Return the post, the position in a carousel and the suffix of the file `name`; None if it is no part of a post.

    Args:
        name: name of the file.
        posts: names of the posts with a node, without suffix.
    """
    if suffix_of(name) not in IMAGE_SUFFIXES | VIDEO_SUFFIXES | {".json", ".xz", _CAPTION_SUFFIX}:
        match = _POST.fullmatch(name)
        return (match["post"], match["child"], match["suffix"].lower()) if match else None
    for pattern in (_PART, _POST):
        if (match := pattern.fullmatch(name)) and (match["post"] in posts or pattern is _POST):
            return match["post"], match["child"], match["suffix"].lower()
    whole = re.fullmatch(r"(.+?)((?:\.json)?\.[A-Za-z0-9]+)", name)  # the name of a post may end in a number, too
    return (whole[1], None, whole[2].lower()) if whole and whole[1] in posts else None


def records(folder: Folder, files: dict[str, File]) -> Iterator[CrawlRecord]:
    """Yield the records of `files`, which `take_files` returned for `folder`, post by post."""
    nodes = {name[: -len(".json.xz")] for name in files if name.endswith(".json.xz")}
    posts: dict[str, list[_Part]] = {}
    for name, file in files.items():
        if not _is_other(name, nodes) and (part := _part_of(name, nodes)) is not None:
            posts.setdefault(part[0], []).append(_Part(*part, file))
    for post, parts in posts.items():
        yield from _post(folder, post, parts)
    for name, file in files.items():
        if _PROFILE.fullmatch(name):
            yield file_record(file, problem="profile_picture")


def _is_other(name: str, nodes: set[str]) -> bool:
    """Return whether the file `name` is neither the node nor another part of a post."""
    if _PROFILE.fullmatch(name) or name.startswith("iterator_"):
        return True
    return _OTHER_METADATA.fullmatch(name) is not None and not name.endswith(".json.xz")


def _post(folder: Folder, post: str, parts: list[_Part]) -> Iterator[CrawlRecord]:
    """Yield the records of one post: broken metadata, then its files by name, then its missing files."""
    node = _Node()
    is_named_by_time = _POST.fullmatch(f"{post}.jpg") is not None
    has_media = any(part.suffix not in {*_NODE_SUFFIXES, _CAPTION_SUFFIX} for part in parts)
    for part in parts:
        if part.suffix in _NODE_SUFFIXES:
            try:
                document = _read_document(part.file)
                if not (is_named_by_time or has_media or is_node(document)):
                    return  # metadata of a hashtag or of a profile
                node = _node(document)
            except ValueError as error:
                yield file_record(part.file, problem="broken_metadata", detail=single_line(error))
                if not (is_named_by_time or has_media):
                    return
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


def _read_document(file: File) -> Any:
    """Read the JSON document in `file`.

    Raises ValueError where it cannot be read or parsed, StorageError for temporary faults of the machine.
    """
    if file.problem is not None:
        raise ValueError(file.problem)
    try:
        data = read_content(file.uri, MAX_NODE_BYTES)
    except Rejected as error:
        raise ValueError(error.detail) from error
    return parse_json(_decompress(data) if file.name.lower().endswith(".xz") else data)


def is_node(document: Any) -> bool:
    """Return whether a JSON `document` is a post as instaloader stores it."""
    return isinstance(value_at(document, "node"), dict) and value_at(document, "instaloader", "node_type") in {
        "Post",
        "StoryItem",
    }


def node_metadata(document: Any) -> Metadata:
    """Return the metadata of a post, with the address of its first image. Raises ValueError if it is not an object."""
    node = _node(document)
    return replace(node.metadata, source_url=node.url)


def _node(document: Any) -> _Node:
    """Return the post in a JSON `document`. Raises ValueError if it is not an object."""
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
        caption = text_or_none(decode_text(content).strip()) or caption
    taken_at = parse_time(f"{match[1]} {match[2]}:{match[3]}:{match[4]}") if (match := _TIME.search(post)) else None
    return Metadata(caption=caption, taken_at=taken_at, hashtags=parse_hashtags(None, caption))
