"""Dumps of gallery-dl: files with their metadata beside them, ``x.jpg`` and ``x.jpg.json``."""

from __future__ import annotations

from collections.abc import Iterator

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
from pipeline.ingest.sources.metadata import Metadata, parse_json, recognise_columns, text_or_none
from pipeline.ingest.sources.tree import File, Folder
from pipeline.records import CrawlRecord

MAX_SIDECAR_BYTES = 16 * 2**20
"""Maximum size of one metadata file in bytes."""

MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES


def take_files(files: dict[str, File]) -> dict[str, File]:
    """Remove metadata files, and the files that they describe, from `files`; return both, by name."""
    taken: dict[str, File] = {}
    for name in list(files):
        media_name = name[: -len(".json")]
        if name.lower().endswith(".json") and (
            suffix_of(media_name) in MEDIA_SUFFIXES
            or (media_name in files and suffix_of(media_name) not in {"", ".json"})
        ):
            taken[name] = files.pop(name)
            if media_name in files:
                taken[media_name] = files.pop(media_name)
    return taken


def records(folder: Folder, files: dict[str, File]) -> Iterator[CrawlRecord]:
    """Yield the records of `files`, which `take_files` returned for `folder`, by name.

    A metadata file without the file that it describes gives the record of a missing file.
    """
    media_of = {name: name[: -len(".json")] for name in files if name.lower().endswith(".json")}
    sidecar_of = {media_name: name for name, media_name in media_of.items()}
    for name in sorted(set(files) - set(media_of) | set(sidecar_of)):
        sidecar = files[sidecar_of[name]]
        metadata = NO_METADATA
        try:
            metadata = read_sidecar(sidecar)
        except ValueError as error:
            yield file_record(sidecar, problem="broken_metadata", detail=single_line(error))
        if name in files:
            yield file_record(files[name], metadata)
        else:
            yield missing_record(folder, name, metadata)


def read_sidecar(file: File) -> Metadata:
    """Read the metadata in `file`.

    Raises ValueError where it cannot be read or parsed, StorageError for temporary faults of the machine.
    """
    if file.problem is not None:
        raise ValueError(file.problem)
    try:
        return parse_metadata(parse_json(read_content(file.uri, MAX_SIDECAR_BYTES)))
    except Rejected as error:
        raise ValueError(error.detail) from error


def parse_metadata(document: object) -> Metadata:
    """Return the metadata in the JSON object `document`. Raises ValueError if it is not an object."""
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, found {type(document).__name__}")
    roles = recognise_columns(tuple(document))
    return roles.metadata(document, text_or_none(document.get(roles.url)) if roles.url else None)
