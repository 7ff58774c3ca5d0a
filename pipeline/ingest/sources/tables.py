"""Tables of addresses: CSV, TSV, JSON lines, Parquet or a plain list, gzipped or not; one record a row.

Only addresses of the web count: a crawl may not pick files of the machine, nor objects of a bucket. The column of
addresses is known by its name; captions, times, hashtags and short codes are, too, and all other columns come along.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

from pipeline.console import say
from pipeline.errors import SourceError, StorageError
from pipeline.ingest.fetch import open_stream, raise_machine_fault
from pipeline.ingest.rejection import Rejected, RejectReason
from pipeline.ingest.sources.file_records import NOTHING_SAID, file_record, one_line
from pipeline.ingest.sources.gzipped import BROKEN_GZIP, is_compressed, unpacked
from pipeline.ingest.sources.metadata import MAX_TEXT_CHARS, URL_NAMES, Metadata, columns
from pipeline.ingest.sources.s3 import STREAM_BUFFER_BYTES
from pipeline.ingest.sources.table_rows import (
    Broken,
    NoTable,
    Reader,
    csv_rows,
    json_rows,
    list_rows,
    parquet_rows,
    tsv_rows,
)
from pipeline.ingest.sources.tree import File, Tree
from pipeline.ingest.text import storable
from pipeline.records import CrawlRecord

READERS: dict[str, Reader] = {
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".tab": tsv_rows,
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".parquet": parquet_rows,
    ".pq": parquet_rows,
    ".txt": list_rows,
    ".lst": list_rows,
    ".list": list_rows,
    ".urls": list_rows,
}
"""By suffix, before ``.gz``."""

MAX_UNPACKED_BYTES = 32 * 2**30
"""Of a gzipped Parquet table, which is unpacked to a temporary file: it cannot be read from its start to its end."""

# Without IGNORECASE, which makes the long part of it several times slower.
_WEB_ADDRESS = re.compile(r"(?:[hH][tT][tT][pP][sS]?:)?//[^/?#\s\x00-\x1f\x7f]+[^\x00-\x1f\x7f]*")
_QUERY = re.compile(r"[?#]")
_OTHER_PLACE = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?[/\\]|[a-z]:|\.\.?[/\\]|~", re.IGNORECASE)


def reader_of(name: str) -> Reader | None:
    """How to read a table of this file `name`; None where it is not named as one."""
    lower = name.lower().removesuffix(".gz")
    return next((reader for suffix, reader in READERS.items() if lower.endswith(suffix)), None)


def table_records(tree: Tree, url_column: str | None = None) -> Iterator[CrawlRecord]:
    """The records of the table `tree`, or of all tables in that folder by name; of others in it nothing is told.

    Raises:
        SourceError: there is no table, or one without rows, without a column of addresses, or without any row that
            can be read.
        StorageError: the machine is at fault, and another attempt may succeed.
    """
    if (table := tree.file()) is not None:
        yield from _records(table, reader_of(table.name) or _sniffed(table), url_column)
        return
    files = [file for file in tree.list().files if reader_of(file.name) is not None and file.problem is None]
    if not files:
        raise SourceError(f"source {tree.root}: no table; expected a file {', '.join(READERS)}, gzipped or not")
    for file in files:
        reader = reader_of(file.name)
        assert reader is not None
        yield from _records(file, reader, url_column)


def looks_like_table(file: File) -> bool:
    """Whether `file` holds a table by its name or its first bytes."""
    if reader_of(file.name) is not None:
        return True
    head = _head(file)
    return head.startswith(b"PAR1") or head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"http://", b"https://"))


def _sniffed(file: File) -> Reader:
    head = _head(file)
    if head.startswith(b"PAR1"):
        return parquet_rows
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"{"):
        return json_rows
    return list_rows if start.lower().startswith((b"http://", b"https://")) else csv_rows


def _head(file: File) -> bytes:
    """The first bytes of a file, unpacked."""
    try:
        with open_stream(file.uri) as raw:
            stream = unpacked(raw) if is_compressed(raw) else raw
            return bytes(stream.read(512))
    except (Rejected, *BROKEN_GZIP):
        return b""


def _records(file: File, reader: Reader, url_column: str | None) -> Iterator[CrawlRecord]:
    readable = 0
    try:
        with ExitStack() as stack:
            for number, row in reader(_opened(file, reader, stack)):
                if isinstance(row, Broken):
                    yield _row_record(file, number, NOTHING_SAID, "broken_metadata", row.why)
                    continue
                readable += 1
                if readable == 1:
                    _check_column(file, row, url_column)
                yield _record(file, number, row, url_column)
    except NoTable as error:
        raise _wrong(file, str(error)) from error
    except Rejected as error:
        raise _wrong(file, error.detail) from error
    except BROKEN_GZIP as error:
        if not readable:
            raise _wrong(file, f"cut off or damaged ({error}); expected a whole file, fetch it again") from error
        say("ingest", f"{file.shown} is cut off or damaged after {readable} rows, which are used: {one_line(error)}")
        yield file_record(file, problem="truncated", detail=one_line(error))
    except OSError as error:
        raise_machine_fault(file.shown, error)
        raise _wrong(file, error.strerror or str(error)) from error
    if not readable:
        raise _wrong(file, "no row that can be read")


def _opened(file: File, reader: Reader, stack: ExitStack) -> BinaryIO:
    """The content of a table, unpacked; to be read from any place where it is Parquet."""
    raw = stack.enter_context(open_stream(file.uri))
    if not is_compressed(raw):
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, raw), STREAM_BUFFER_BYTES))
    stream = unpacked(cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, raw), STREAM_BUFFER_BYTES)))
    if reader is not parquet_rows:
        return stream
    copy = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
    try:
        while part := stream.read(STREAM_BUFFER_BYTES):
            copy.write(part)
            if copy.tell() > MAX_UNPACKED_BYTES:
                raise NoTable(
                    f"more than {MAX_UNPACKED_BYTES:,} bytes unpacked; unpack it first, Parquet needs no gzip"
                )
    except BROKEN_GZIP:
        raise
    except OSError as error:
        raise StorageError(f"cannot unpack {file.shown} to {tempfile.gettempdir()}: {error.strerror}") from error
    copy.seek(0)
    return cast(BinaryIO, copy)


def _check_column(file: File, row: dict[str, Any], url_column: str | None) -> None:
    """Raise SourceError where a first row has no column of addresses."""
    if columns(tuple(row), url_column).url is not None:
        return
    found = storable(", ".join(str(name)[:50] for name in list(row)[:20])) or "no column"
    wanted = f"no column {url_column}" if url_column else f"no column of addresses, such as {', '.join(URL_NAMES[:4])}"
    raise _wrong(file, f"{wanted} (found {found}); name it with --url-column")


def _record(file: File, number: int, row: dict[str, Any], url_column: str | None) -> CrawlRecord:
    meant = columns(tuple(row), url_column)
    value = row.get(meant.url) if meant.url else None
    address = value.strip() if isinstance(value, str) else ""
    if len(address) > MAX_TEXT_CHARS or not _WEB_ADDRESS.fullmatch(address):
        said = meant.metadata(row, storable(address[:200]) or None)
        if _OTHER_PLACE.match(address) and not address.lower().startswith(("http:", "https:", "//")):
            return _row_record(file, number, said, "outside_source", "an address that is not on the web")
        why = "an address that is none" if address else "no address"
        return _row_record(file, number, said, "no_address", why)
    url = storable(f"https:{address}" if address.startswith("//") else address)
    said = meant.metadata(row, url)
    return CrawlRecord(
        source_uri=url,
        file_name=_name_in(url),
        **vars(said),
        fingerprint=url,
    )


def _name_in(url: str) -> str:
    """The last part of the path of `url`; empty where it has none."""
    path = _QUERY.split(url.partition("//")[2], maxsplit=1)[0].partition("/")[2]
    name = path.rpartition("/")[2]
    return storable(unquote(name)[:255]) if "%" in name else name[:255]


def _row_record(file: File, number: int, said: Metadata, problem: RejectReason, why: str) -> CrawlRecord:
    """The record of a row without an address that can be fetched."""
    row = File(f"{file.path}#{number}", f"{file.uri}#row={number}", None)
    return file_record(row, said, problem, one_line(why))


def _wrong(file: File, what: str) -> SourceError:
    return SourceError(f"source {file.shown}: {one_line(what, 1_000)}")
