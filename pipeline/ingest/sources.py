"""A crawl on disk to a stream of records, always in the same order.

A crawl is a folder of images, with subfolders. Where a folder holds the metadata of an instagram-scraper dump,
its files are joined to their posts. Labelled collections are files of arrays, or a folder per class: with those, each
image's label is the name of the first folder below the source.

Every regular file is a record, however little it looks like an image: what it holds shows when it is decoded.
Only hidden files, ``*.part`` and the dump's metadata are left out, and links to folders are not followed. Links to
files are, within the source.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from pipeline.config import SourceType
from pipeline.errors import SourceError
from pipeline.ingest.fetch import file_uri, raise_machine_fault
from pipeline.ingest.instagram import Post, read_posts
from pipeline.ingest.labelled import idx_records, looks_like_idx, npz_records
from pipeline.ingest.rejection import RejectReason
from pipeline.ingest.text import storable
from pipeline.records import CrawlRecord

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".flv", ".wmv", ".mpg", ".mpeg", ".3gp"})
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif", ".heic"})
"""A video post also has pictures: its files of these types are not taken for the video."""


def read_records(source: str, source_type: SourceType = "auto") -> Iterator[CrawlRecord]:
    """The records of `source`, which `IngestConfig.source_type` describes.

    Those of a folder are its files by name, then missing ones, then its subfolders by name; those of arrays are their
    images in order.

    Raises:
        SourceError: `source` is missing, is not of its type, cannot be listed, or holds no file.
        StorageError: the machine is at fault, and another attempt may succeed.
    """
    root = source_root(source)
    found = _detect(root) if source_type == "auto" else source_type
    if found == "idx":
        return idx_records(root)
    if found == "npz":
        return npz_records(root)
    return _folder_records(root, class_folders=found == "class-folders")


def source_root(source: str) -> Path:
    """The absolute folder or file that `source` names. Raises SourceError for an address: only folders are read."""
    if "://" in source:
        raise SourceError(f"source {source}: only folders are read so far, no addresses")
    return Path(source).expanduser().absolute()


def is_inside(path: str, folder: Path) -> bool:
    """Whether `path` is `folder` or below it, once all links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def count_candidates(source: str, at_most: int, source_type: SourceType = "auto") -> int:
    """How many records of `source` may become images, counting no further than `at_most`.

    Raises what `read_records` does.
    """
    return sum(1 for _ in islice((r for r in read_records(source, source_type) if r.problem is None), at_most))


def _detect(root: Path) -> SourceType:
    if root.suffix.lower() == ".npz" and root.is_file():
        return "npz"
    return "idx" if looks_like_idx(root) else "folder"


def _folder_records(root: Path, class_folders: bool) -> Iterator[CrawlRecord]:
    if not root.is_dir():
        raise SourceError(f"source {root}: {'expected a folder, found a file' if root.exists() else 'no such folder'}")
    empty = unlabelled = True
    for record in _walk(root, class_folders):
        empty, unlabelled = False, unlabelled and record.label is None
        yield record
    if empty:
        raise SourceError(f"source {root}: the folder holds no file")
    if class_folders and unlabelled:
        raise SourceError(
            f"source {root}: no class-folders, all its files lie in no folder below; expected one a class"
        )


def _walk(root: Path, class_folders: bool) -> Iterator[CrawlRecord]:
    folders = [str(root)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as scan:
                entries = sorted((e for e in scan if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            if folder == str(root):
                raise SourceError(f"source {root}: {error.strerror}") from error
            raise_machine_fault(storable(folder), error)
            yield _record(root, folder, None, None, "unreadable")
            continue
        inside = Path(folder).relative_to(root).parts
        label = storable(inside[0]) if class_folders and inside else None
        records = _records_in(root, folder, entries)
        yield from records if label is None else (replace(record, label=label) for record in records)
        folders.extend(e.path for e in reversed(entries) if e.is_dir(follow_symlinks=False))


def _records_in(root: Path, folder: str, entries: list[os.DirEntry[str]]) -> Iterator[CrawlRecord]:
    """The records of one folder, without its subfolders."""
    files = {e.name: e for e in entries if not e.name.lower().endswith(".part") and _is_candidate(e)}
    listed: list[Post] = []
    for name, entry in list(files.items()):
        if not name.lower().endswith(".json") or _leaves(root, entry):
            continue
        if (found := read_posts(Path(entry.path))) is not None:
            del files[name]
            listed += found
    posts: dict[object, Post] = {}
    for post in sorted(listed, key=lambda post: not post.urls):  # of two nodes of one post, the one that names files
        posts.setdefault(post.key, post)
    post_of: dict[str, Post] = {}
    for post in posts.values():
        for name in post.urls:
            post_of.setdefault(name, post)

    expected = {name: post for post in posts.values() for name in post.expected}
    for name, entry in files.items():
        post_or_none = post_of.get(storable(name))
        yield _record(root, entry.path, post_or_none, *_inspect(root, entry, post_or_none))
        expected.pop(storable(name), None)
    for name, post in expected.items():
        yield _record(root, os.path.join(folder, name), post, None, "missing_file")
    for post in posts.values():
        if not post.urls:
            yield _record(root, os.path.join(folder, ""), post, None, "missing_file")


def _leaves(root: Path, entry: os.DirEntry[str]) -> bool:
    """Whether `entry` is a link to something outside `root`."""
    return entry.is_symlink() and not is_inside(entry.path, root)


def _is_candidate(entry: os.DirEntry[str]) -> bool:
    """Whether `entry` is a regular file, a link to one, or a link to nothing."""
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True


def _inspect(root: Path, entry: os.DirEntry[str], post: Post | None) -> tuple[int | None, RejectReason | None]:
    """Size in bytes of a file, and the reason to reject it that shows before it is opened."""
    if _leaves(root, entry):
        return None, "outside_source"
    try:
        size = entry.stat().st_size
    except FileNotFoundError:
        return None, "missing_file"
    except OSError as error:
        raise_machine_fault(storable(entry.path), error)
        return None, "unreadable"
    suffix = Path(entry.name).suffix.lower()
    is_video = suffix in VIDEO_SUFFIXES or (post is not None and post.is_video and suffix not in IMAGE_SUFFIXES)
    return size, "video" if is_video else None


def _record(root: Path, path: str, post: Post | None, size: int | None, problem: RejectReason | None) -> CrawlRecord:
    name = storable(os.path.basename(path))
    fingerprint = f"{storable(os.path.relpath(path, root))}:{size}"
    if post is None:
        return CrawlRecord(file_uri(path), name, problem=problem, fingerprint=fingerprint)
    return CrawlRecord(
        source_uri=file_uri(path),
        file_name=name,
        shortcode=post.shortcode,
        caption=post.caption,
        taken_at=post.taken_at,
        hashtags=post.hashtags,
        source_url=post.urls.get(name),
        extra=post.extra,
        problem=problem,
        fingerprint=fingerprint,
    )
