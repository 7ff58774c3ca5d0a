"""Tables of addresses and of posts: CSV, TSV, JSON, JSON lines, Parquet or a plain list, gzipped or not.

Only web addresses are accepted: a crawl must not select files of the machine or objects of a bucket. The columns of
addresses, captions, times, hashtags and short codes are recognised by their names; all other columns are kept.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from pipeline.config import IngestConfig
from pipeline.console import say
from pipeline.errors import SourceError, StorageError
from pipeline.ingest.rejection import Rejected, RejectReason
from pipeline.ingest.sources.archives.gzipped import BROKEN_GZIP, decompressed, is_compressed
from pipeline.ingest.sources.content import open_stream, raise_machine_fault
from pipeline.ingest.sources.file_records import NO_METADATA, file_record, single_line
from pipeline.ingest.sources.metadata import MAX_TEXT_CHARS, URL_NAMES, Metadata, recognise_columns, storable
from pipeline.ingest.sources.posts.captures import Captures, Tool, tool_of
from pipeline.ingest.sources.posts.post import PostOptions
from pipeline.ingest.sources.s3 import STREAM_BUFFER_BYTES
from pipeline.ingest.sources.tables.addresses import WEB_ADDRESS, address_columns, addresses_in, name_in, with_lists
from pipeline.ingest.sources.tables.delimited_rows import csv_rows, tsv_rows
from pipeline.ingest.sources.tables.json_arrays import json_array_rows
from pipeline.ingest.sources.tables.line_rows import json_rows, list_rows
from pipeline.ingest.sources.tables.lookahead import Lookahead
from pipeline.ingest.sources.tables.parquet_rows import parquet_rows
from pipeline.ingest.sources.tables.rows import BrokenRow, NotATable, Reader
from pipeline.ingest.sources.tables.text_lines import encoding_of
from pipeline.ingest.sources.tree import File, Tree
from pipeline.records import CrawlRecord

READERS: dict[str, Reader] = {
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".tab": tsv_rows,
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_array_rows,
    ".parquet": parquet_rows,
    ".pq": parquet_rows,
    ".txt": list_rows,
    ".lst": list_rows,
    ".list": list_rows,
    ".urls": list_rows,
}
"""Reader of a table by the suffix of its file name, without ``.gz``."""

MAX_DECOMPRESSED_BYTES = 32 * 2**30
"""Maximum size of a gzipped Parquet table in bytes, decompressed.

It is decompressed to a temporary file, because Parquet needs a seekable file.
"""

SAMPLE_ROWS = 100
"""Number of rows in which the column of addresses is looked for."""

_OTHER_LOCATION = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?[/\\]|[a-z]:|\.\.?[/\\]|~", re.IGNORECASE)


def reader_of(name: str) -> Reader | None:
    """Return the reader for a table with the file `name`; None if it does not have the suffix of a table."""
    lower = name.lower().removesuffix(".gz")
    return next((reader for suffix, reader in READERS.items() if lower.endswith(suffix)), None)


@dataclass(frozen=True)
class TableOptions:
    """What a user says about tables and the posts in them."""

    url_column: str | None = None
    """Name of the column of addresses; by default, it is found."""
    encoding: str | None = None
    """Encoding of text files; by default, it is detected."""
    posts: PostOptions = field(default_factory=PostOptions)

    @classmethod
    def of(cls, config: IngestConfig) -> TableOptions:
        """Return what `config` says about tables."""
        return cls(config.url_column, config.encoding, PostOptions(config.video_thumbnails, config.author_hash))


def table_records(tree: Tree, options: TableOptions, tool: Tool | None = None) -> Iterator[CrawlRecord]:
    """Yield the records of the table `tree`, or of all tables in that folder by name; other files are ignored.

    Tables of posts are recognised by their rows, or `tool` says which tool captured them. In a folder, a table without
    rows, or without a column of addresses, is skipped with a word on the console.

    Raises:
        SourceError: there is no table, or none has a readable row and a column of addresses.
        StorageError: a fault of the machine; another attempt may succeed.
    """
    if (table := tree.file()) is not None:
        yield from _records(table, reader_of(table.name) or _detect_reader(table), options, tool, set())
        return
    files = [file for file in tree.list().files if reader_of(file.name) is not None and file.problem is None]
    if not files:
        raise SourceError(f"source {tree.root}: contains no table; expected {', '.join(READERS)} files, gzipped or not")
    yield from records_of_tables(files, options, tool)


def records_of_tables(files: list[File], options: TableOptions, tool: Tool | None = None) -> Iterator[CrawlRecord]:
    """Yield the records of several tables; one without rows or addresses is skipped with a word on the console.

    Raises the same errors as `table_records`.
    """
    error: SourceError | None = None
    used = False
    seen: set[str] = set()
    for file in files:
        reader = reader_of(file.name)
        assert reader is not None
        try:
            for record in _records(file, reader, options, tool, seen):
                used = True
                yield record
        except SourceError as skipped:
            error = skipped
            say("ingest", f"skipped: {skipped}")
    if error is not None and not used:
        raise error


def looks_like_table(file: File) -> bool:
    """Return whether `file` is a table according to its name or its first bytes."""
    if reader_of(file.name) is not None:
        return True
    head = _head(file)
    text = _text(head)
    return head.startswith(b"PAR1") or text.startswith(("{", "[")) or _starts_with_address(text)


def is_json_array(file: File) -> bool:
    """Return whether the first bytes of `file` are those of a JSON array."""
    return _text(_head(file)).startswith("[")


def _detect_reader(file: File) -> Reader:
    """Return the reader for `file` according to its first bytes."""
    head = _head(file)
    if head.startswith(b"PAR1"):
        return parquet_rows
    if _text(head).startswith(("{", "[")):
        return json_array_rows
    return list_rows if _starts_with_address(_text(head)) else csv_rows


def _starts_with_address(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def _text(head: bytes) -> str:
    """Return the first bytes of a file as text, without a mark and white space before it."""
    return head.decode(encoding_of(head), "replace").lstrip("\ufeff \t\r\n")


def _head(file: File) -> bytes:
    """Return the first bytes of a file, decompressed; empty if it cannot be read."""
    try:
        with open_stream(file.uri) as raw:
            stream = decompressed(raw) if is_compressed(raw) else raw
            return bytes(stream.read(512))
    except (Rejected, *BROKEN_GZIP):
        return b""


def _records(
    file: File, reader: Reader, options: TableOptions, tool: Tool | None, seen: set[str]
) -> Iterator[CrawlRecord]:
    """Yield the records of one table; `seen` are the short codes of the posts of the tables before it."""
    readable = 0
    captures: Captures | None = None
    try:
        with ExitStack() as stack:
            rows = Lookahead(reader(_open_table(file, reader, stack), options.encoding))
            first = [row for _, row in rows.ahead(SAMPLE_ROWS) if not isinstance(row, BrokenRow)]
            tool = tool or (tool_of(first) if options.url_column is None else None)
            captures = Captures(file, tool, options.posts, seen) if tool else None
            column = None if captures else _address_column(file, list(map(with_lists, first)), options.url_column)
            for number, row in rows:
                if isinstance(row, BrokenRow):
                    yield _rejected_row(file, number, NO_METADATA, "broken_metadata", row.reason)
                    continue
                readable += 1
                if captures is not None:
                    yield from captures.add(number, row)
                else:
                    yield from _row_records(file, number, with_lists(row), column)
            if captures is not None:
                yield from captures.finish()
    except NotATable as error:
        raise _source_error(file, str(error)) from error
    except Rejected as error:
        raise _source_error(file, error.detail) from error
    except BROKEN_GZIP as error:
        if not readable:
            raise _source_error(
                file, f"cut off or damaged ({error}); expected a complete file, fetch it again"
            ) from error
        say(
            "ingest",
            f"{file.printable_uri} is cut off or damaged after {readable} rows, which are used: {single_line(error)}",
        )
        if captures is not None:
            yield from captures.finish()
        yield file_record(file, problem="truncated", detail=single_line(error))
    except OSError as error:
        raise_machine_fault(file.printable_uri, error)
        raise _source_error(file, error.strerror or str(error)) from error
    if not readable:
        raise _source_error(file, "contains no readable row")


def _open_table(file: File, reader: Reader, stack: ExitStack) -> BinaryIO:
    """Open a table, decompressed; the stream is seekable if the table is Parquet. `stack` closes it."""
    raw = stack.enter_context(open_stream(file.uri))
    if not is_compressed(raw):
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, raw), STREAM_BUFFER_BYTES))
    stream = decompressed(cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, raw), STREAM_BUFFER_BYTES)))
    if reader is not parquet_rows:
        return stream
    copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
    try:
        while part := stream.read(STREAM_BUFFER_BYTES):
            copy.write(part)
            if copy.tell() > MAX_DECOMPRESSED_BYTES:
                raise NotATable(
                    f"more than {MAX_DECOMPRESSED_BYTES:,} bytes once decompressed; decompress the file yourself, "
                    "Parquet does not need gzip"
                )
    except BROKEN_GZIP:
        raise
    except OSError as error:
        folder = tempfile.gettempdir()
        raise StorageError(f"cannot decompress {file.printable_uri} to {folder}: {error.strerror}") from error
    copy.seek(0)
    return cast(BinaryIO, copy)


def _address_column(file: File, rows: list[Mapping[str, Any]], url_column: str | None) -> str | None:
    """Return the name of the column of addresses, found in the first `rows` of a table; None if it has no rows.

    Raises SourceError if there is none.
    """
    if not rows:
        return None
    names = dict.fromkeys(name for row in rows for name in row)
    if url_column is not None:
        if url_column in names:
            return url_column
    elif found := address_columns(rows):
        if len(found) > 1:
            say(
                "ingest", f"{file.printable_uri}: the column of images is {_shown(found[:1])}, not {_shown(found[1:6])}"
            )
        return found[0]
    elif (named := recognise_columns(tuple(names)).url) is not None:
        return named  # its cells are no addresses, which their rows say
    missing = f"no column {url_column}" if url_column else f"no column of addresses, such as {', '.join(URL_NAMES[:4])}"
    raise _source_error(file, f"{missing} (found {_shown(list(names)[:20])}); name it with --url-column")


def _shown(names: list[str]) -> str:
    return storable(", ".join(str(name)[:50] for name in names)) or "no column"


def _row_records(file: File, number: int, row: Mapping[str, Any], column: str | None) -> Iterator[CrawlRecord]:
    """Yield one record for each address in a row, or one that says why there is none."""
    value = row.get(column) if column else None
    if isinstance(value, list):
        value = next(iter(value), None) if not addresses_in(value) else value
    for address in addresses_in(value) or [value.strip() if isinstance(value, str) else ""]:
        yield _record(file, number, row, column, address)


def _record(file: File, number: int, row: Mapping[str, Any], column: str | None, address: str) -> CrawlRecord:
    roles = recognise_columns(tuple(row), column)
    if len(address) > MAX_TEXT_CHARS or not WEB_ADDRESS.fullmatch(address):
        metadata = roles.metadata(row, storable(address[:200]) or None)
        if _OTHER_LOCATION.match(address) and not address.lower().startswith(("http:", "https:", "//")):
            return _rejected_row(file, number, metadata, "outside_source", "the address is not a web address")
        reason = "the address is not a valid URL" if address else "the row has no address"
        return _rejected_row(file, number, metadata, "no_address", reason)
    url = storable(f"https:{address}" if address.startswith("//") else address)
    metadata = roles.metadata(row, url)
    return CrawlRecord(
        source_uri=url,
        file_name=name_in(url),
        **vars(metadata),
        fingerprint=url,
    )


def _rejected_row(file: File, number: int, metadata: Metadata, problem: RejectReason, detail: str) -> CrawlRecord:
    """Return the record of a row without an address that can be downloaded."""
    row = File(f"{file.path}#{number}", f"{file.uri}#row={number}", None)
    return file_record(row, metadata, problem, single_line(detail))


def _source_error(file: File, message: str) -> SourceError:
    return SourceError(f"source {file.printable_uri}: {single_line(message, 1_000)}")
