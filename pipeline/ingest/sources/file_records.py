"""Records of files, with the metadata that the crawl holds about them."""

from __future__ import annotations

import os
from dataclasses import replace

from pipeline.console import say
from pipeline.ingest.rejection import RejectReason
from pipeline.ingest.sources.metadata import Metadata, storable
from pipeline.ingest.sources.tree import File, Folder
from pipeline.records import CrawlRecord

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".flv", ".wmv", ".mpg", ".mpeg", ".3gp"})
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif", ".heic"})
"""Suffixes of pictures. A video post also has pictures: files with these suffixes are not treated as its video."""

NO_METADATA = Metadata()
"""Metadata of a file about which the crawl holds none."""


def suffix_of(name: str) -> str:
    """Return the last suffix of a file `name` in lower case, such as ``.jpg``."""
    return os.path.splitext(name)[1].lower()


def file_record(
    file: File, metadata: Metadata = NO_METADATA, problem: RejectReason | None = None, detail: str | None = None
) -> CrawlRecord:
    """Return the record of `file`; without a `problem`, a file with the suffix of a video gets the problem ``video``.

    A problem that `file` already has takes precedence over `problem`.
    """
    name = storable(file.name)
    if problem is None and suffix_of(file.name) in VIDEO_SUFFIXES:
        problem = "video"
    return CrawlRecord(
        source_uri=file.uri,
        file_name=name,
        **vars(metadata),
        problem=file.problem or problem,
        problem_detail=detail or file.detail,
        fingerprint=f"{storable(file.path)}:{file.size}",
    )


def missing_record(folder: Folder, name: str, metadata: Metadata) -> CrawlRecord:
    """Return the record of a missing file of a post in `folder`; `name` is empty if the post names no file."""
    # A record without a name refers to the folder itself, whose path within the source ends without a slash.
    path = folder.path + name if name else folder.path.rstrip("/") or "."
    record = file_record(File(path, folder.uri + name, None), metadata, "missing_file")
    return record if name else replace(record, file_name="")


def report_unused_metadata(file: File, reason: str) -> None:
    """Report on the console, in one line, that `file` is not used as metadata."""
    say("ingest", f"{file.printable_uri} is not used as metadata: {single_line(reason)}")


def single_line(message: object, max_chars: int = 200) -> str:
    """Return `message`, such as an error, as storable text in one line, cut to `max_chars` characters."""
    return storable(" ".join(str(message).split())[:max_chars])
