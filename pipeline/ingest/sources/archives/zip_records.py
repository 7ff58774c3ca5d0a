"""Records of ZIP archives: images with their metadata, as in tars, and the images that 4CAT downloaded.

The ZIP of 4CAT has a file ``.metadata.json`` that lists each address, the file that it was stored as, and its posts.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.archives.members import Member, MemberAddress
from pipeline.ingest.sources.archives.samples import Samples, is_hidden, is_sidecar
from pipeline.ingest.sources.archives.zips import list_members
from pipeline.ingest.sources.content import open_stream, raise_machine_fault, read_content
from pipeline.ingest.sources.file_records import (
    IMAGE_SUFFIXES,
    NO_METADATA,
    VIDEO_SUFFIXES,
    file_record,
    report_unused_metadata,
    single_line,
    suffix_of,
)
from pipeline.ingest.sources.metadata import (
    Metadata,
    list_or_empty,
    parse_json,
    storable,
    storable_extra,
    text_or_none,
)
from pipeline.ingest.sources.s3 import S3_SCHEME, STREAM_BUFFER_BYTES
from pipeline.ingest.sources.tree import File
from pipeline.records import CrawlRecord

FOURCAT_METADATA = ".metadata.json"
"""Name of the member in which 4CAT lists what it has downloaded."""

MAX_METADATA_BYTES = 64 * 2**20
"""Maximum size of this list in bytes."""

LOCAL_BUFFER_BYTES = 2**16
"""Size of the read buffer of a local ZIP in bytes."""


@dataclass(frozen=True)
class _Download:
    """An address that 4CAT downloaded, or could not download."""

    url: str
    name: str | None
    """Name of the file in the ZIP."""
    metadata: Metadata


def is_zip(name: str) -> bool:
    """Return whether `name` is the file name of a ZIP."""
    return name.lower().endswith(".zip")


def members_of(file: File) -> list[Member]:
    """Return the members of the ZIP `file`, without hidden files.

    Raises BrokenZip, Rejected where the file cannot be opened, and StorageError for faults of the machine.
    """
    buffer_bytes = STREAM_BUFFER_BYTES if file.uri.startswith(S3_SCHEME) else LOCAL_BUFFER_BYTES
    try:
        with open_stream(file.uri) as raw, io.BufferedReader(cast(Any, raw), buffer_bytes) as buffered:
            members = list_members(cast(BinaryIO, buffered))
    except OSError as error:
        raise_machine_fault(file.printable_uri, error)
        raise Rejected("unreadable", single_line(error)) from error
    return [member for member in members if not is_hidden(member.name) or _base(member) == FOURCAT_METADATA]


def tables_in(file: File, members: list[Member], suffixes: tuple[str, ...]) -> list[File]:
    """Return the members of a ZIP that are tables by their `suffixes`; none if the ZIP holds images, too."""
    readable = [member for member in members if member.problem is None]
    if any(suffix_of(member.name) in IMAGE_SUFFIXES | VIDEO_SUFFIXES for member in readable):
        return []
    return [_file(file, member) for member in readable if member.name.lower().endswith(suffixes)]


def records(file: File, members: list[Member]) -> Iterator[CrawlRecord]:
    """Yield the records of `members` of the ZIP `file`, then those of addresses that 4CAT could not download."""
    listed = next((member for member in members if _base(member) == FOURCAT_METADATA), None)
    downloads = _fourcat_downloads(file, listed) if listed is not None else []
    by_name = {download.name: download for download in downloads if download.name is not None}
    stored = set()

    def record_of(member: Member, metadata: Metadata) -> CrawlRecord:
        download = by_name.get(_base(member))
        if download is not None:
            stored.add(download.url)
            metadata = download.metadata if metadata is NO_METADATA else metadata
        record = file_record(_file(file, member), metadata)
        record = replace(record, fingerprint=f"{storable(file.path)}#{storable(member.name)}:{member.size}")
        return replace(record, problem="unreadable", problem_detail=member.problem) if member.problem else record

    samples = Samples(record_of)
    for member in members:
        if member is not listed:
            yield from samples.add(_with_content(file, member))
    yield from samples.finish()
    for download in downloads:
        if download.url not in stored:
            place = File(f"{file.path}#{download.url}", f"{file.uri}#url={download.url}", None)
            yield replace(
                file_record(place, download.metadata, "missing_file", "4CAT could not download it"), file_name=""
            )


def whole_file_record(file: File, error: Exception) -> CrawlRecord:
    """Return the record of a ZIP that cannot be read because of `error`."""
    if isinstance(error, Rejected):
        return file_record(file, problem=error.reason, detail=error.detail)
    return file_record(file, problem="corrupt", detail=single_line(error))


def _base(member: Member) -> str:
    return member.name.rpartition("/")[2]


def _file(file: File, member: Member) -> File:
    address = MemberAddress(file.uri, member.name, member.offset, member.size, zipped=member.zipped)
    return File(_base(member), address.uri, member.size)


def _with_content(file: File, member: Member) -> Member:
    """Return a member with its content, if this is metadata that can be read."""
    if member.problem is not None or not is_sidecar(member.name, member.size):
        return member
    try:
        return replace(member, content=read_content(_file(file, member).uri, member.size))
    except Rejected as error:
        return replace(member, problem=error.detail)


def _fourcat_downloads(file: File, member: Member) -> list[_Download]:
    """Return what the list of 4CAT says, as far as it can be read; what cannot be read is reported on the console."""
    place = _file(file, member)
    try:
        document = parse_json(read_content(place.uri, MAX_METADATA_BYTES))
    except (Rejected, ValueError, MemoryError) as error:
        report_unused_metadata(place, error.detail if isinstance(error, Rejected) else str(error))
        return []
    if not isinstance(document, dict):
        report_unused_metadata(place, f"expected a JSON object, found {type(document).__name__}")
        return []
    return [_download(url, entry) for url, entry in document.items() if isinstance(entry, Mapping)]


def _download(url: str, entry: Mapping[str, Any]) -> _Download:
    posts = [post for item in list_or_empty(entry.get("post_ids")) if (post := text_or_none(str(item)))]
    name = text_or_none(entry.get("filename")) if entry.get("success") is not False else None
    address = text_or_none(url) or ""
    extra = storable_extra({"post_ids": posts}) if len(posts) > 1 else {}
    metadata = Metadata(shortcode=posts[0] if posts else None, source_url=address, extra=extra)
    return _Download(address, name, metadata)
