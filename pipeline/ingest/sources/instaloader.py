"""Hashtag dumps of instaloader: ``2020-09-13_12-26-40_UTC{.jpg,_1.jpg,.mp4,.txt,.json.xz}``, named by the post's time.

A post's node is in its ``.json.xz``; without one, its caption is in ``.txt`` and its time in the name. Two posts of
one second share their names, so that image and metadata may then disagree: nothing in the dump tells.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby

from pipeline.ingest.fetch import fetch
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.file_records import (
    IMAGE_SUFFIXES,
    NOTHING_SAID,
    VIDEO_SUFFIXES,
    file_record,
    missing_record,
    one_line,
    suffix_of,
)
from pipeline.ingest.sources.instagram import post_extra
from pipeline.ingest.sources.metadata import Metadata, dig, hashtags, listed, moment, parse_json, text
from pipeline.ingest.sources.tree import File, Folder
from pipeline.records import CrawlRecord

MAX_NODE_BYTES = 64 * 2**20
"""Of one post's metadata, decompressed."""

MAX_XZ_MEMORY = 128 * 2**20
"""That a file may ask for to be decompressed; its writer's own preset takes a tenth."""

MAX_CAPTION_BYTES = 2**20

MAX_CHILDREN = 100
"""Of a carousel; Instagram's own have up to 20."""

_POST = re.compile(r"(?P<post>\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_UTC)(?:_(?P<child>\d{1,3}))?(?P<suffix>\.[A-Za-z0-9.]+)")
_ASIDE = re.compile(r".*_UTC_comments\.json(\.xz)?|.*_UTC_location\.txt|iterator_.*\.json(\.xz)?|.*\.json\.xz")
"""Metadata that is of no post's image."""
_PROFILE = re.compile(r".*_profile_pic\.\w+")
_NODE_SUFFIXES = (".json.xz", ".json")
_CAPTION_SUFFIX = ".txt"


@dataclass(frozen=True)
class _Part:
    """A file of a post."""

    post: str
    child: str | None
    """Its place in a carousel, as the name has it."""
    suffix: str
    file: File


@dataclass(frozen=True)
class _Node:
    """What the metadata of one post says."""

    said: Metadata = NOTHING_SAID
    url: str | None = None
    is_video: bool = False
    children: list[tuple[str | None, bool]] = field(default_factory=list)
    """Address and whether it is a video, for each part of a carousel."""


def claim(files: dict[str, File]) -> dict[str, File]:
    """Take what instaloader left out of `files`, by name; nothing where no file is named as its posts are."""
    media = IMAGE_SUFFIXES | VIDEO_SUFFIXES | {".json", ".xz"}
    if not any(_POST.fullmatch(name) and suffix_of(name) in media for name in files):
        return {}
    wanted = (_POST, _ASIDE, _PROFILE)
    return {name: files.pop(name) for name in list(files) if any(pattern.fullmatch(name) for pattern in wanted)}


def records(folder: Folder, files: dict[str, File]) -> Iterator[CrawlRecord]:
    """The records of the claimed `files` of `folder`, post by post."""
    named = ((found, files[name]) for name in files if (found := _POST.fullmatch(name)))
    parts = (_Part(found["post"], found["child"], found["suffix"].lower(), file) for found, file in named)
    for post, of_post in groupby(parts, key=lambda part: part.post):
        yield from _post(folder, post, list(of_post))
    for name, file in files.items():
        if _PROFILE.fullmatch(name):
            yield file_record(file, problem="profile_picture")


def _post(folder: Folder, post: str, parts: list[_Part]) -> Iterator[CrawlRecord]:
    """The records of one post: what is broken, its files by name, those that are missing."""
    node = _Node()
    for part in parts:
        if part.suffix in _NODE_SUFFIXES:
            try:
                node = _read_node(part.file)
            except ValueError as error:
                yield file_record(part.file, problem="broken_metadata", detail=one_line(error))
    if node.said is NOTHING_SAID:
        texts = [part.file for part in parts if part.suffix == _CAPTION_SUFFIX]
        node = replace(node, said=_without_node(post, texts))
    media = [part for part in parts if part.suffix not in {*_NODE_SUFFIXES, _CAPTION_SUFFIX}]
    there = {part.child for part in media}
    filmed = {part.child for part in media if part.suffix in VIDEO_SUFFIXES}
    for part in media:
        url, is_video = _of_child(node, part.child)
        extra = dict(node.said.extra)
        if part.suffix in IMAGE_SUFFIXES and (is_video or part.child in filmed):
            extra["video_thumbnail"] = True
        yield file_record(part.file, replace(node.said, source_url=url, extra=extra))
    expected: list[str | None] = [str(i + 1) for i in range(len(node.children))]
    if not expected and not there:
        expected = [None]
    for child in expected:
        if child not in there:
            url, is_video = _of_child(node, child)
            name = f"{post}{'' if child is None else f'_{child}'}.{'mp4' if is_video else 'jpg'}"
            yield missing_record(folder, name, replace(node.said, source_url=url))


def _of_child(node: _Node, child: str | None) -> tuple[str | None, bool]:
    """Address of a file of a post, and whether the post has a video there."""
    if child is not None and node.children:
        place = int(child) - 1
        return node.children[place] if 0 <= place < len(node.children) else (None, False)
    return node.url, node.is_video


def _read_node(file: File) -> _Node:
    """Raises ValueError where `file` cannot be read as a post's metadata, StorageError for faults of the machine."""
    if file.problem is not None:
        raise ValueError(file.problem)
    try:
        data = fetch(file.uri, MAX_NODE_BYTES)
    except Rejected as error:
        raise ValueError(error.detail) from error
    document = parse_json(_unpacked(data) if file.name.lower().endswith(".xz") else data)
    node = document.get("node", document) if isinstance(document, dict) else None
    if not isinstance(node, dict):
        raise ValueError("expected the node of a post")
    caption = text(dig(node, "edge_media_to_caption", "edges", 0, "node", "text"))
    caption = caption or text(node.get("caption")) or text(dig(node, "caption", "text"))
    children = [dig(edge, "node") for edge in listed(dig(node, "edge_sidecar_to_children", "edges"))]
    times = (moment(node.get(name)) for name in ("date", "taken_at_timestamp", "taken_at"))
    return _Node(
        Metadata(
            shortcode=text(node.get("shortcode")) or text(node.get("code")),
            caption=caption,
            taken_at=next((time for time in times if time is not None), None),
            hashtags=hashtags(None, caption),
            extra=post_extra(node),
        ),
        url=text(node.get("display_url")) or text(node.get("display_src")),
        is_video=node.get("is_video") is True,
        children=[(text(dig(c, "display_url")), dig(c, "is_video") is True) for c in children[:MAX_CHILDREN]],
    )


def _unpacked(data: bytes) -> bytes:
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_XZ_MEMORY)
        content = unpacker.decompress(data, MAX_NODE_BYTES + 1)
    except lzma.LZMAError as error:
        raise ValueError(f"not an xz file ({error})") from error
    if len(content) > MAX_NODE_BYTES:
        raise ValueError(f"more than {MAX_NODE_BYTES} bytes once decompressed")
    if not unpacker.eof:
        raise ValueError("cut off")
    return content


def _without_node(post: str, texts: list[File]) -> Metadata:
    """What the name of a post and its captions' files say."""
    caption = None
    for file in texts:
        try:
            content = fetch(file.uri, MAX_CAPTION_BYTES) if file.problem is None else b""
        except Rejected:
            continue
        caption = text(content.decode("utf-8", "backslashreplace").strip()) or caption
    try:
        taken_at = datetime.strptime(post, "%Y-%m-%d_%H-%M-%S_UTC").replace(tzinfo=UTC)
    except ValueError:
        taken_at = None
    return Metadata(caption=caption, taken_at=taken_at, hashtags=hashtags(None, caption))
