"""Recognise the tool that captured the posts of a table, and turn its rows into records, each post once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, Literal

from pipeline.console import counted, say
from pipeline.ingest.sources.file_records import NO_METADATA, file_record
from pipeline.ingest.sources.posts import apify, fourcat, zeeschuimer
from pipeline.ingest.sources.posts.post import Post, PostOptions, post_records
from pipeline.ingest.sources.tree import File
from pipeline.records import CrawlRecord

Tool = Literal["fourcat", "zeeschuimer", "apify"]

TOOLS: dict[Tool, ModuleType] = {"fourcat": fourcat, "zeeschuimer": zeeschuimer, "apify": apify}

MAX_INCOMPLETE = 10_000
"""Maximum number of posts that are held back because a later capture of the same post may be complete."""


def tool_of(rows: Iterable[Mapping[str, Any]]) -> Tool | None:
    """Return the tool that captured the posts in `rows`, the first ones of a table; None if they are no posts."""
    return next((tool for row in rows for tool, module in TOOLS.items() if module.is_post(row)), None)


class Captures:
    """The posts of a table, in the order of their rows, each of them once.

    `seen` are the short codes of the posts of earlier tables of the same source, to which those of this one are added.
    """

    def __init__(self, file: File, tool: Tool, options: PostOptions, seen: set[str]) -> None:
        self._file, self._tool, self._options, self._seen = file, tool, options, seen
        self._incomplete: dict[str, tuple[int, Post]] = {}
        self._advertisements = 0

    def add(self, number: int, row: Mapping[str, Any]) -> Iterator[CrawlRecord]:
        """Yield the records of the post in row `number`, unless it was captured before or is an advertisement.

        A capture without the time or without an image is held back until another one of the same post follows.
        """
        post = TOOLS[self._tool].read_post(row)
        if post is None:
            place = File(f"{self._file.path}#{number}", f"{self._file.uri}#row={number}", None)
            yield file_record(place, NO_METADATA, "broken_metadata", "no post: the row has no short code")
        elif post.is_advertisement:
            self._advertisements += 1
        elif post.code not in self._seen:
            if post.is_complete:
                self._seen.add(post.code)
                self._incomplete.pop(post.code, None)
                yield from post_records(post, self._file, number, self._options)
            else:
                self._incomplete.setdefault(post.code, (number, post))
                if len(self._incomplete) > MAX_INCOMPLETE:
                    yield from self._first_incomplete()

    def finish(self) -> Iterator[CrawlRecord]:
        """Yield the records of the posts of which no capture is complete."""
        while self._incomplete:
            yield from self._first_incomplete()
        if self._advertisements:
            say("ingest", f"{self._file.printable_uri}: {counted(self._advertisements, 'advertisement')} left out")

    def _first_incomplete(self) -> Iterator[CrawlRecord]:
        code = next(iter(self._incomplete))
        number, post = self._incomplete.pop(code)
        self._seen.add(code)
        yield from post_records(post, self._file, number, self._options)
