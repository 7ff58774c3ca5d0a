"""Join the members of an archive: each image with the metadata and the caption that belong to it.

As in WebDataset, ``x.json`` and ``x.txt`` are the metadata and the caption of ``x.jpg``, and so is ``x.jpg.json``.
Members that share their name up to the first dot form one sample: ``x.json`` describes ``x.front.jpg``, too, unless
there is ``x.front.json``. The members of a sample usually follow each other; those that do not are joined as far as
memory allows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from pipeline.ingest.sources.archives.members import Member
from pipeline.ingest.sources.file_records import NO_METADATA, single_line, suffix_of
from pipeline.ingest.sources.metadata import Metadata, parse_json, text_or_none
from pipeline.ingest.sources.scrapers.sidecars import parse_metadata, stem_of, with_caption
from pipeline.ingest.sources.tables.text_lines import decode_text
from pipeline.records import CrawlRecord

MAX_SIDECAR_BYTES = 2**20
"""Maximum size of a ``.json`` or ``.txt`` member that is read as metadata, in bytes; larger ones become records."""

MAX_SAMPLE_MEMBERS = 64
"""Maximum number of consecutive members that are joined at once."""

MAX_WAITING = 10_000
"""Maximum number of images that wait for metadata further back in the archive."""

MAX_WAITING_BYTES = 64 * 2**20
"""Maximum size in bytes of the metadata that waits for images further back in the archive."""

STATUS_COLUMNS = ("status", "error_message")
"""Columns of img2dataset that carry no information about an image that was downloaded."""

RecordOf = Callable[[Member, Metadata], CrawlRecord]
"""Function that returns the record of a member of the archive."""


def is_sidecar(name: str, size: int) -> bool:
    """Return whether the content of a member is read as metadata while the archive is listed."""
    return suffix_of(name) in {".json", ".txt"} and size <= MAX_SIDECAR_BYTES and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Return whether a member is ignored: hidden files, and the copies that macOS adds to archives."""
    return name.rpartition("/")[2].startswith(".") or name.startswith("__MACOSX/")


def key_of(name: str) -> str:
    """Return the key that the members of a sample share: their path up to the first dot of the file name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def without_status(metadata: Metadata) -> Metadata:
    """Return `metadata` without STATUS_COLUMNS."""
    extra = {name: value for name, value in metadata.extra.items() if name not in STATUS_COLUMNS}
    return replace(metadata, extra=extra)


@dataclass
class _Waiting:
    """An image, and the members that describe it."""

    image: Member
    sidecars: list[Member] = field(default_factory=list)


class Samples:
    """Joins members that are added in the order of the archive, and yields their records in that order.

    A sidecar without an image becomes a record of its own.
    """

    def __init__(self, record_of: RecordOf) -> None:
        self._record_of = record_of
        self._group: list[Member] = []
        self._images: deque[_Waiting] = deque()
        self._by_stem: dict[str, _Waiting] = {}
        self._sidecars: dict[str, list[Member]] = {}
        self._sidecar_bytes = 0
        self._broken: set[int] = set()

    def add(self, member: Member) -> Iterator[CrawlRecord]:
        """Add a member; `Member.content` is set for sidecars only. Yield the records that are complete."""
        if self._group and (
            len(self._group) >= MAX_SAMPLE_MEMBERS or key_of(member.name) != key_of(self._group[0].name)
        ):
            yield from self._close_group()
        self._group.append(member)

    def finish(self) -> Iterator[CrawlRecord]:
        """Yield the records of all members that are left."""
        yield from self._close_group()
        yield from self._release(0, 0)

    def _close_group(self) -> Iterator[CrawlRecord]:
        """Join the members of a group, which share a key, with each other and with those that wait."""
        group, self._group = self._group, []
        sidecars: dict[str, list[Member]] = {}
        for member in group:
            if member.content is not None:
                sidecars.setdefault(stem_of(member.name), []).append(member)
        unused = dict(sidecars)
        for member in group:
            if member.content is None:
                waiting = _Waiting(member)
                for stem in (member.name, stem_of(member.name), key_of(member.name)):
                    found = sidecars.get(stem) or self._sidecars.get(stem)
                    if found:
                        unused.pop(stem, None)
                        self._forget(stem)
                        sidecars[stem] = waiting.sidecars = found
                        break
                self._images.append(waiting)
                self._by_stem.setdefault(stem_of(member.name), waiting)
        for stem, members in unused.items():
            if (image := self._by_stem.get(stem)) is not None and not image.sidecars:
                image.sidecars = members
            else:
                self._sidecars.setdefault(stem, []).extend(members)
                self._sidecar_bytes += sum(len(member.content or b"") for member in members)
        yield from self._release(MAX_WAITING, MAX_WAITING_BYTES)

    def _forget(self, stem: str) -> None:
        self._sidecar_bytes -= sum(len(member.content or b"") for member in self._sidecars.pop(stem, []))

    def _release(self, images: int, sidecar_bytes: int) -> Iterator[CrawlRecord]:
        """Yield the first images as long as they have metadata, or more than `images` wait; and too many sidecars."""
        while self._images and (self._images[0].sidecars or len(self._images) > images):
            waiting = self._images.popleft()
            self._by_stem.pop(stem_of(waiting.image.name), None)
            yield from self._records(waiting)
        while self._sidecars and self._sidecar_bytes >= max(sidecar_bytes, 1):
            stem, members = next(iter(self._sidecars.items()))
            self._forget(stem)
            yield from (self._record_of(member, NO_METADATA) for member in members)

    def _records(self, waiting: _Waiting) -> Iterator[CrawlRecord]:
        """Yield the record of an image, and those of its sidecars that cannot be read."""
        metadata, caption = NO_METADATA, None
        broken = []
        for member in waiting.sidecars:
            assert member.content is not None
            if suffix_of(member.name) == ".json":
                try:
                    metadata = without_status(parse_metadata(parse_json(member.content)))
                except ValueError as error:
                    if member.offset not in self._broken:  # it may describe several images
                        self._broken.add(member.offset)
                        record = self._record_of(member, NO_METADATA)
                        broken.append(replace(record, problem="broken_metadata", problem_detail=single_line(error)))
            else:
                caption = text_or_none(decode_text(member.content).strip())
        if metadata.caption is None and caption:
            metadata = with_caption(metadata, caption)
        yield self._record_of(waiting.image, metadata)
        yield from broken
