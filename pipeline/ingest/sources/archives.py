"""Tars of images, plain or written by img2dataset: ``00000.tar`` with the table ``00000.parquet`` beside it.

As in WebDataset, consecutive members that share their name up to the first dot form one sample: ``.json`` and ``.txt``
members are the metadata and the caption of its images. The table of img2dataset also lists the addresses that could not
be downloaded; each of them becomes a record without a file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.content import open_stream, raise_machine_fault
from pipeline.ingest.sources.file_records import (
    NO_METADATA,
    file_record,
    single_line,
    suffix_of,
)
from pipeline.ingest.sources.gzipped import is_compressed
from pipeline.ingest.sources.members import MemberAddress
from pipeline.ingest.sources.metadata import (
    Metadata,
    parse_hashtags,
    parse_json,
    recognise_columns,
    storable,
    text_or_none,
)
from pipeline.ingest.sources.parquet_rows import parquet_rows
from pipeline.ingest.sources.rows import BrokenRow, NotATable
from pipeline.ingest.sources.s3 import S3_SCHEME, STREAM_BUFFER_BYTES
from pipeline.ingest.sources.sidecars import parse_metadata
from pipeline.ingest.sources.tars import BrokenTar, Member, iter_members
from pipeline.ingest.sources.tree import File
from pipeline.records import CrawlRecord

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

MAX_SIDECAR_BYTES = 2**20
"""Maximum size of a ``.json`` or ``.txt`` member that is read as metadata, in bytes; larger ones become records."""

LOCAL_BUFFER_BYTES = 2**15
"""Size of the read buffer of a local tar in bytes; it is small because mostly the headers of members are read."""

MAX_SAMPLE_MEMBERS = 64
"""Maximum number of members of one sample; further members with the same key start another one."""

STATUS_COLUMNS = ("status", "error_message")
"""Columns of img2dataset that carry no information about an image that was downloaded."""


@dataclass(frozen=True)
class Archive:
    """A tar of a source."""

    file: File
    table: File | None = None
    """Table of img2dataset with one row per address that it tried to download."""


def is_tar(name: str) -> bool:
    """Return whether `name` is the file name of a tar."""
    return name.lower().endswith(TAR_SUFFIXES)


def take_archives(files: dict[str, File]) -> list[Archive]:
    """Remove the tars, and the files of img2dataset beside them, from `files`, which are keyed by name; return them."""
    archives = []
    for name in list(files):
        if is_tar(name) and files[name].problem is None:
            stem = name.partition(".")[0]
            files.pop(f"{stem}_stats.json", None)
            archives.append(Archive(files.pop(name), files.pop(f"{stem}.parquet", None)))
    return archives


def records(archive: Archive, must_be_tar: bool = False) -> Iterator[CrawlRecord]:
    """Yield the records of `archive`: its members in order, then the rows of its table that have no member.

    A broken tar becomes a record itself. With `must_be_tar`, BrokenTar is raised instead if the tar has no member.

    Raises StorageError for temporary faults of the machine.
    """
    keys: set[str] | None = set() if archive.table is not None else None
    found = False
    try:
        for member_record, key in _member_records(archive.file):
            found = True
            if keys is not None:
                keys.add(key)
            yield member_record
        if must_be_tar and not found:
            raise BrokenTar("contains no files")
    except BrokenTar as error:
        if must_be_tar and not found:
            raise
        yield file_record(archive.file, problem="truncated" if found else "corrupt", detail=single_line(error))
    except Rejected as error:
        yield file_record(archive.file, problem=error.reason, detail=error.detail)
    except OSError as error:
        raise_machine_fault(archive.file.printable_uri, error)
        yield file_record(archive.file, problem="unreadable", detail=single_line(error))
    if archive.table is not None and keys is not None:
        yield from _records_without_member(archive.table, keys)


def _member_records(file: File) -> Iterator[tuple[CrawlRecord, str]]:
    """Yield the records of the members of a tar, each with its key."""
    buffer_bytes = STREAM_BUFFER_BYTES if file.uri.startswith(S3_SCHEME) else LOCAL_BUFFER_BYTES
    with open_stream(file.uri) as raw, io.BufferedReader(cast(io.RawIOBase, raw), buffer_bytes) as buffered:
        stream = cast(BinaryIO, buffered)
        compressed = is_compressed(stream)
        sample: list[Member] = []
        members = iter_members(stream, _is_sidecar)
        tar_error: BrokenTar | None = None
        while tar_error is None:
            try:
                member = next(members, None)
            except BrokenTar as error:
                member, tar_error = None, error
            if sample and (
                member is None or len(sample) >= MAX_SAMPLE_MEMBERS or _key(member.name) != _key(sample[0].name)
            ):
                key = _key(sample[0].name)
                yield from ((record, key) for record in _sample_records(file, sample, compressed))
                sample = []
            if member is None:
                break
            if not _base_name(member.name).startswith("."):
                sample.append(member)
    if tar_error is not None:
        raise tar_error


def _sample_records(file: File, sample: list[Member], compressed: bool) -> Iterator[CrawlRecord]:
    """Yield the records of the members of one `sample`, which share a key."""
    images = [m for m in sample if m.content is None]
    metadata = NO_METADATA
    problems: dict[str, str] = {}
    caption = None
    for member in sample if images else ():
        if member.content is None:
            continue
        if suffix_of(member.name) == ".json":
            try:
                metadata = _without_status(parse_metadata(parse_json(member.content)))
            except ValueError as error:
                problems[member.name] = single_line(error)
        else:
            caption = text_or_none(member.content.decode("utf-8", "backslashreplace").strip())
    if metadata.caption is None and caption:
        metadata = replace(metadata, caption=caption, hashtags=metadata.hashtags or parse_hashtags(None, caption))
    for member in sample:
        if member.content is None or not images:
            yield _record(file, member, metadata, compressed)
        elif member.name in problems:
            record = _record(file, member, NO_METADATA, compressed)
            yield replace(record, problem="broken_metadata", problem_detail=problems[member.name])


def _record(file: File, member: Member, metadata: Metadata, compressed: bool) -> CrawlRecord:
    address = MemberAddress(file.uri, member.name, member.offset, member.size, compressed)
    record = file_record(File(_base_name(member.name), address.uri, member.size), metadata)
    record = replace(record, fingerprint=f"{storable(file.path)}#{storable(member.name)}:{member.size}")
    if not member.regular:
        record = replace(record, problem="unreadable", problem_detail="a link, a device or a sparse file in a tar")
    return record


def _records_without_member(table: File, keys: set[str]) -> Iterator[CrawlRecord]:
    """Yield the records of the rows of img2dataset's `table` whose key is not among `keys`, those of the tar."""
    if table.problem is not None:
        yield file_record(table)
        return
    try:
        with open_stream(table.uri) as raw:
            for number, row in parquet_rows(raw):
                if isinstance(row, BrokenRow):
                    yield file_record(table, problem="broken_metadata", detail=single_line(row.reason))
                elif str(row.get("key")) not in keys:
                    yield _failed_download(table, number, row)
    except NotATable as error:
        yield file_record(table, problem="broken_metadata", detail=single_line(error))
    except Rejected as error:
        yield file_record(table, problem=error.reason, detail=error.detail)


def _failed_download(table: File, number: int, row: dict[str, Any]) -> CrawlRecord:
    roles = recognise_columns(tuple(row))
    url = text_or_none(row.get(roles.url)) if roles.url else None
    reason = text_or_none(row.get("error_message")) or "not in the tar"
    return replace(
        file_record(
            File(f"{table.path}#{number}", f"{table.uri}#row={number}", None),
            _without_status(roles.metadata(row, url)),
            "missing_file",
            f"img2dataset: {single_line(reason)}",
        ),
        file_name="",
    )


def _without_status(metadata: Metadata) -> Metadata:
    extra = {name: value for name, value in metadata.extra.items() if name not in STATUS_COLUMNS}
    return replace(metadata, extra=extra)


def _is_sidecar(name: str, size: int) -> bool:
    """Return whether the content of a member is read as metadata while the tar is listed."""
    return suffix_of(name) in {".json", ".txt"} and size <= MAX_SIDECAR_BYTES and not _base_name(name).startswith(".")


def _base_name(name: str) -> str:
    return name.rpartition("/")[2]


def _key(name: str) -> str:
    """Return the key that the members of a sample share: their path up to the first dot of the file name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]
