"""Files with their metadata beside them: ``x.jpg`` with ``x.jpg.json``, or with ``x.json`` and the caption ``x.txt``.

gallery-dl and img2dataset's format ``files`` write such folders. One metadata file may describe several files, such as
a video and its thumbnail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

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
from pipeline.ingest.sources.metadata import (
    Metadata,
    parse_hashtags,
    parse_json,
    recognise_columns,
    text_or_none,
)
from pipeline.ingest.sources.scrapers.instaloader import is_node, node_metadata
from pipeline.ingest.sources.tables.text_lines import decode_text
from pipeline.ingest.sources.tree import File, Folder
from pipeline.records import CrawlRecord

MAX_SIDECAR_BYTES = 16 * 2**20
"""Maximum size of one metadata file in bytes."""

MAX_CAPTION_BYTES = 2**20
"""Maximum size of a caption file in bytes."""

MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES


@dataclass
class Described:
    """Files that share their metadata."""

    media: dict[str, File | None] = field(default_factory=dict)
    """Images and videos by name; None for one that does not exist."""
    sidecar: File | None = None
    """Metadata in JSON."""
    caption: File | None = None
    """Caption as a text."""


def take_files(files: dict[str, File]) -> list[Described]:
    """Remove metadata files, and the files that they describe, from `files`, which are keyed by name; return both."""
    by_stem: dict[str, list[str]] = {}
    for name in files:
        if suffix_of(name) in MEDIA_SUFFIXES:
            by_stem.setdefault(stem_of(name), []).append(name)
    groups: dict[str, Described] = {}
    for name in list(files):
        stem, suffix = stem_of(name), suffix_of(name)
        if suffix == ".json" and stem not in by_stem and _names_media(stem, files):
            groups[stem] = Described({stem: files.get(stem)}, sidecar=files[name])
        elif suffix in {".json", ".txt"} and stem in by_stem:
            group = groups.setdefault(stem, Described({media: files[media] for media in by_stem[stem]}))
            if suffix == ".json":
                group.sidecar = files[name]
            else:
                group.caption = files[name]
        else:
            continue
        del files[name]
    for group in groups.values():
        for name in group.media:
            files.pop(name, None)
    return [groups[stem] for stem in sorted(groups)]


def _names_media(name: str, files: dict[str, File]) -> bool:
    """Return whether ``name.json`` describes the file `name`, which may be missing if its suffix is that of media."""
    return suffix_of(name) in MEDIA_SUFFIXES or (name in files and suffix_of(name) not in {"", ".json"})


def stem_of(name: str) -> str:
    """Return a file name without its last suffix."""
    suffix = suffix_of(name)
    return name[: -len(suffix)] if suffix else name


def records(folder: Folder, groups: list[Described]) -> Iterator[CrawlRecord]:
    """Yield the records of `groups`, which `take_files` returned for `folder`.

    A metadata file without the file that it describes gives the record of a missing file.
    """
    for group in groups:
        metadata = NO_METADATA
        if group.sidecar is not None:
            try:
                metadata = read_sidecar(group.sidecar)
            except ValueError as error:
                yield file_record(group.sidecar, problem="broken_metadata", detail=single_line(error))
        if group.caption is not None and metadata.caption is None:
            metadata = with_caption(metadata, read_caption(group.caption))
        for name, file in group.media.items():
            yield missing_record(folder, name, metadata) if file is None else file_record(file, metadata)


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


def read_caption(file: File) -> str | None:
    """Return the text in `file`; None if it is empty or cannot be read. Raises StorageError as `read_sidecar` does."""
    try:
        content = read_content(file.uri, MAX_CAPTION_BYTES) if file.problem is None else b""
    except Rejected:
        return None
    return text_or_none(decode_text(content).strip()) or None


def with_caption(metadata: Metadata, caption: str | None) -> Metadata:
    """Return `metadata` with a `caption`, and with its hashtags if there are no others."""
    return replace(metadata, caption=caption, hashtags=metadata.hashtags or parse_hashtags(None, caption))


def parse_metadata(document: object) -> Metadata:
    """Return the metadata in the JSON object `document`. Raises ValueError if it is not an object."""
    if not isinstance(document, dict):
        raise ValueError(f"expected a JSON object, found {type(document).__name__}")
    if is_node(document):
        return node_metadata(document)
    roles = recognise_columns(tuple(document))
    return roles.metadata(document, text_or_none(document.get(roles.url)) if roles.url else None)
