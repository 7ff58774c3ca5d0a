"""Tars of images, plain or written by img2dataset: ``00000.tar`` with the table ``00000.parquet`` beside it.

The members are joined with their metadata as `Samples` describes. The table of img2dataset also lists the addresses
that could not be downloaded; each of them becomes a record without a file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.archives.gzipped import is_compressed
from pipeline.ingest.sources.archives.members import Member, MemberAddress
from pipeline.ingest.sources.archives.samples import Samples, is_hidden, is_sidecar, key_of, without_status
from pipeline.ingest.sources.archives.tars import BrokenTar, iter_members
from pipeline.ingest.sources.content import open_stream, raise_machine_fault
from pipeline.ingest.sources.file_records import file_record, single_line
from pipeline.ingest.sources.metadata import Metadata, recognise_columns, storable, text_or_none
from pipeline.ingest.sources.s3 import S3_SCHEME, STREAM_BUFFER_BYTES
from pipeline.ingest.sources.tables.parquet_rows import parquet_rows
from pipeline.ingest.sources.tables.rows import BrokenRow, NotATable
from pipeline.ingest.sources.tree import File
from pipeline.records import CrawlRecord

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

LOCAL_BUFFER_BYTES = 2**15
"""Size of the read buffer of a local tar in bytes; it is small because mostly the headers of members are read."""


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
        for member_record in _member_records(archive.file, keys):
            found = True
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
        yield from records_without_member(archive.table, keys)


def _member_records(file: File, keys: set[str] | None) -> Iterator[CrawlRecord]:
    """Yield the records of the members of a tar, and add their keys to `keys`, if it is given.

    Raises BrokenTar after the records of the members before the damage.
    """
    buffer_bytes = STREAM_BUFFER_BYTES if file.uri.startswith(S3_SCHEME) else LOCAL_BUFFER_BYTES
    with open_stream(file.uri) as raw, io.BufferedReader(cast(io.RawIOBase, raw), buffer_bytes) as buffered:
        stream = cast(BinaryIO, buffered)
        compressed = is_compressed(stream)
        samples = Samples(lambda member, metadata: _record(file, member, metadata, compressed))
        try:
            for member in iter_members(stream, is_sidecar):
                if not is_hidden(member.name):
                    if keys is not None:
                        keys.add(key_of(member.name))
                    yield from samples.add(member)
        except BrokenTar:
            yield from samples.finish()
            raise
        yield from samples.finish()


def _record(file: File, member: Member, metadata: Metadata, compressed: bool) -> CrawlRecord:
    address = MemberAddress(file.uri, member.name, member.offset, member.size, compressed)
    record = file_record(File(member.name.rpartition("/")[2], address.uri, member.size), metadata)
    record = replace(record, fingerprint=f"{storable(file.path)}#{storable(member.name)}:{member.size}")
    return replace(record, problem="unreadable", problem_detail=member.problem) if member.problem else record


def records_without_member(table: File, keys: set[str]) -> Iterator[CrawlRecord]:
    """Yield the records of the rows of img2dataset's `table` whose key is not among `keys`, those of its images."""
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
    reason = text_or_none(row.get("error_message")) or "the image is not there"
    return replace(
        file_record(
            File(f"{table.path}#{number}", f"{table.uri}#row={number}", None),
            without_status(roles.metadata(row, url)),
            "missing_file",
            f"img2dataset: {single_line(reason)}",
        ),
        file_name="",
    )
