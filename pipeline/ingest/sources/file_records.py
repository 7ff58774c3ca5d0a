"""A file and what a crawl says of it, as a record."""

from __future__ import annotations

import os
from dataclasses import replace

from pipeline.console import say
from pipeline.ingest.rejection import RejectReason
from pipeline.ingest.sources.metadata import Metadata
from pipeline.ingest.sources.tree import File, Folder
from pipeline.ingest.text import storable
from pipeline.records import CrawlRecord

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".flv", ".wmv", ".mpg", ".mpeg", ".3gp"})
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif", ".heic"})
"""A video post also has pictures: its files of these types are not taken for the video."""

NOTHING_SAID = Metadata()


def suffix_of(name: str) -> str:
    """The last suffix of a file's name in lower case, such as ``.jpg``."""
    return os.path.splitext(name)[1].lower()


def file_record(
    file: File, said: Metadata = NOTHING_SAID, problem: RejectReason | None = None, detail: str | None = None
) -> CrawlRecord:
    """The record of `file`. A problem of the file itself comes before `problem`; videos are known by their names."""
    name = storable(file.name)
    if problem is None and suffix_of(file.name) in VIDEO_SUFFIXES:
        problem = "video"
    return CrawlRecord(
        source_uri=file.uri,
        file_name=name,
        **vars(said),
        problem=file.problem or problem,
        problem_detail=detail,
        fingerprint=f"{storable(file.path)}:{file.size}",
    )


def missing_record(folder: Folder, name: str, said: Metadata) -> CrawlRecord:
    """The record of a file `name` that a post in `folder` should have left; empty for a post that names none."""
    # Without a name it is the folder itself, whose path within the source ends without a slash.
    path = folder.path + name if name else folder.path.rstrip("/") or "."
    record = file_record(File(path, folder.uri + name, None), said, "missing_file")
    return record if name else replace(record, file_name="")


def not_used(file: File, why: str) -> None:
    """Tell the user that metadata is not used, in one line."""
    say("ingest", f"{file.shown} is not used as metadata: {one_line(why)}")


def one_line(why: object, at_most: int = 200) -> str:
    """The message of an error in one line of `at_most` characters."""
    return storable(" ".join(str(why).split())[:at_most])
