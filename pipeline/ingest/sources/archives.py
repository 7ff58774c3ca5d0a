"""Tars of images, plain or as img2dataset writes them: ``00000.tar`` with a table ``00000.parquet`` beside.

Files of one tar that follow each other and share the name up to its first dot belong together, as WebDataset has it:
``.json`` and ``.txt`` are the metadata and the caption of the images. img2dataset's table also has the addresses that
it could not download: each is a record without a file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

from pipeline.ingest.address import MemberAddress
from pipeline.ingest.fetch import open_stream
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.file_records import (
    NOTHING_SAID,
    file_record,
    one_line,
    suffix_of,
)
from pipeline.ingest.sources.gallery_dl import described
from pipeline.ingest.sources.gzipped import is_compressed
from pipeline.ingest.sources.metadata import Metadata, columns, hashtags, parse_json, text
from pipeline.ingest.sources.s3 import S3_SCHEME, STREAM_BUFFER_BYTES
from pipeline.ingest.sources.table_rows import Broken, NoTable, parquet_rows
from pipeline.ingest.sources.tars import BrokenTar, Member, members
from pipeline.ingest.sources.tree import File
from pipeline.ingest.text import storable
from pipeline.records import CrawlRecord

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

MAX_SIDECAR_BYTES = 2**20
"""Of one ``.json`` or ``.txt`` in a tar."""

LOCAL_BUFFER_BYTES = 2**15
"""Read at once from a local tar: of its members, only the headers are wanted."""

MAX_TOGETHER = 64
"""Members that can share a key."""

STATUS_COLUMNS = ("status", "error_message")
"""Of img2dataset; they say nothing about an image that is there."""


@dataclass(frozen=True)
class Archive:
    """A tar of a source."""

    file: File
    table: File | None = None
    """Of img2dataset, with a row for each address that it tried."""


def is_tar(name: str) -> bool:
    """Whether a file of this `name` should be a tar."""
    return name.lower().endswith(TAR_SUFFIXES)


def claim(files: dict[str, File]) -> list[Archive]:
    """Take tars and what img2dataset leaves beside them out of `files`, by name."""
    archives = []
    for name in list(files):
        if is_tar(name) and files[name].problem is None:
            stem = name.partition(".")[0]
            files.pop(f"{stem}_stats.json", None)
            archives.append(Archive(files.pop(name), files.pop(f"{stem}.parquet", None)))
    return archives


def records(archive: Archive, must_be_tar: bool = False) -> Iterator[CrawlRecord]:
    """The records of `archive`: its members in order, then what its table has besides.

    A tar that is broken is a record itself. With `must_be_tar`, BrokenTar is raised where it has no member at all.

    Raises StorageError where the machine is at fault.
    """
    keys: set[str] | None = set() if archive.table is not None else None
    found = False
    try:
        for member_record, key in _members(archive.file):
            found = True
            if keys is not None:
                keys.add(key)
            yield member_record
        if must_be_tar and not found:
            raise BrokenTar("holds no file")
    except BrokenTar as error:
        if must_be_tar and not found:
            raise
        yield file_record(archive.file, problem="truncated" if found else "corrupt", detail=one_line(error))
    except Rejected as error:
        yield file_record(archive.file, problem=error.reason, detail=error.detail)
    if archive.table is not None and keys is not None:
        yield from _not_there(archive.table, keys)


def _members(file: File) -> Iterator[tuple[CrawlRecord, str]]:
    """Records of the members, each with its key."""
    buffer_bytes = STREAM_BUFFER_BYTES if file.uri.startswith(S3_SCHEME) else LOCAL_BUFFER_BYTES
    with open_stream(file.uri) as raw, io.BufferedReader(cast(io.RawIOBase, raw), buffer_bytes) as buffered:
        stream = cast(BinaryIO, buffered)
        compressed = is_compressed(stream)
        together: list[Member] = []
        walk = members(stream, _is_sidecar)
        broken: BrokenTar | None = None
        while broken is None:
            try:
                member = next(walk, None)
            except BrokenTar as error:
                member, broken = None, error
            if together and (
                member is None or len(together) >= MAX_TOGETHER or _key(member.name) != _key(together[0].name)
            ):
                key = _key(together[0].name)
                yield from ((record, key) for record in _sample(file, together, compressed))
                together = []
            if member is None:
                break
            if not _base(member.name).startswith("."):
                together.append(member)
    if broken is not None:
        raise broken


def _sample(file: File, together: list[Member], compressed: bool) -> Iterator[CrawlRecord]:
    """The records of members that share a key."""
    images = [m for m in together if m.content is None]
    said = NOTHING_SAID
    problems: dict[str, str] = {}
    caption = None
    for member in together if images else ():
        if member.content is None:
            continue
        if suffix_of(member.name) == ".json":
            try:
                said = _without_status(described(parse_json(member.content)))
            except ValueError as error:
                problems[member.name] = one_line(error)
        else:
            caption = text(member.content.decode("utf-8", "backslashreplace").strip())
    if said.caption is None and caption:
        said = replace(said, caption=caption, hashtags=said.hashtags or hashtags(None, caption))
    for member in together:
        if member.content is None or not images:
            yield _record(file, member, said, compressed)
        elif member.name in problems:
            record = _record(file, member, NOTHING_SAID, compressed)
            yield replace(record, problem="broken_metadata", problem_detail=problems[member.name])


def _record(file: File, member: Member, said: Metadata, compressed: bool) -> CrawlRecord:
    address = MemberAddress(file.uri, member.name, member.offset, member.size, compressed)
    record = file_record(File(_base(member.name), address.uri, member.size), said)
    record = replace(record, fingerprint=f"{storable(file.path)}#{storable(member.name)}:{member.size}")
    if not member.regular:
        record = replace(record, problem="unreadable", problem_detail="a link, a device or a sparse file in a tar")
    return record


def _not_there(table: File, keys: set[str]) -> Iterator[CrawlRecord]:
    """The rows of img2dataset's `table` that have no file in the tar."""
    if table.problem is not None:
        yield file_record(table)
        return
    try:
        with open_stream(table.uri) as raw:
            for number, row in parquet_rows(raw):
                if isinstance(row, Broken):
                    yield file_record(table, problem="broken_metadata", detail=one_line(row.why))
                elif str(row.get("key")) not in keys:
                    yield _failed(table, number, row)
    except NoTable as error:
        yield file_record(table, problem="broken_metadata", detail=one_line(error))
    except Rejected as error:
        yield file_record(table, problem=error.reason, detail=error.detail)


def _failed(table: File, number: int, row: dict[str, Any]) -> CrawlRecord:
    meant = columns(tuple(row))
    url = text(row.get(meant.url)) if meant.url else None
    why = text(row.get("error_message")) or "not in the tar"
    return replace(
        file_record(
            File(f"{table.path}#{number}", f"{table.uri}#row={number}", None),
            _without_status(meant.metadata(row, url)),
            "missing_file",
            f"img2dataset: {one_line(why)}",
        ),
        file_name="",
    )


def _without_status(said: Metadata) -> Metadata:
    return replace(said, extra={name: value for name, value in said.extra.items() if name not in STATUS_COLUMNS})


def _is_sidecar(name: str, size: int) -> bool:
    """Whether a member's content is wanted while the tar is gone through."""
    return suffix_of(name) in {".json", ".txt"} and size <= MAX_SIDECAR_BYTES and not _base(name).startswith(".")


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _key(name: str) -> str:
    """What members of one sample share: the name up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]
