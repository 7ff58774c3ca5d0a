"""Files with their metadata beside them: ``x.jpg`` and ``x.jpg.json``, as gallery-dl leaves them."""

from __future__ import annotations

from collections.abc import Iterator

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
from pipeline.ingest.sources.metadata import Metadata, columns, parse_json, text
from pipeline.ingest.sources.tree import File, Folder
from pipeline.records import CrawlRecord

MAX_SIDECAR_BYTES = 16 * 2**20

MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES


def claim(files: dict[str, File]) -> dict[str, File]:
    """Take files with metadata, and that metadata, out of `files`, by name."""
    described: dict[str, File] = {}
    for name in list(files):
        owner = name[: -len(".json")]
        if name.lower().endswith(".json") and (
            suffix_of(owner) in MEDIA_SUFFIXES or (owner in files and suffix_of(owner) not in {"", ".json"})
        ):
            described[name] = files.pop(name)
            if owner in files:
                described[owner] = files.pop(owner)
    return described


def records(folder: Folder, files: dict[str, File]) -> Iterator[CrawlRecord]:
    """The records of the claimed `files` of `folder`, by name; those whose metadata has no file are missing."""
    beside = {name: name[: -len(".json")] for name in files if name.lower().endswith(".json")}
    sidecar_of = {owner: name for name, owner in beside.items()}
    for name in sorted(set(files) - set(beside) | set(sidecar_of)):
        sidecar = files[sidecar_of[name]]
        said = NOTHING_SAID
        try:
            said = read_sidecar(sidecar)
        except ValueError as error:
            yield file_record(sidecar, problem="broken_metadata", detail=one_line(error))
        if name in files:
            yield file_record(files[name], said)
        else:
            yield missing_record(folder, name, said)


def read_sidecar(file: File) -> Metadata:
    """What `file` says. Raises ValueError where it cannot be parsed, StorageError for faults of the machine."""
    if file.problem is not None:
        raise ValueError(file.problem)
    try:
        return described(parse_json(fetch(file.uri, MAX_SIDECAR_BYTES)))
    except Rejected as error:
        raise ValueError(error.detail) from error


def described(document: object) -> Metadata:
    """What the JSON object `document` says of an image. Raises ValueError where it is none."""
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, found {type(document).__name__}")
    meant = columns(tuple(document))
    return meant.metadata(document, text(document.get(meant.url)) if meant.url else None)
