"""A record's address to its bytes, never more of them than allowed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote_to_bytes

from pipeline.config import IngestConfig
from pipeline.errors import StorageError
from pipeline.ingest.address import parse_member
from pipeline.ingest.download.downloads import download, is_url
from pipeline.ingest.download.host_limits import Exchange, local_limits
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.members import read_member
from pipeline.ingest.sources.s3 import S3_SCHEME, S3Stream, read_object

FILE_SCHEME = "file://"

FAULTS_OF_THE_FILE = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV,
        errno.EFBIG, errno.EOVERFLOW,
    }
)  # fmt: skip
"""What a read meets wherever and whenever it is tried. Any other error is a fault of the machine and may pass."""


def raise_machine_fault(path: str, error: OSError) -> None:
    """Raise a StorageError, unless `error` is a property of the file at `path`."""
    if error.errno not in FAULTS_OF_THE_FILE:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot read {path}: {reason}; the same command continues once it can be read") from error


def file_uri(path: str) -> str:
    """The address of the absolute `path` that `fetch` opens: the path itself, as long as UTF-8 can hold it.

    A path that reads like the address of a tar's member becomes a URL, too.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        return Path(path).as_uri()
    return path if parse_member(path) is None else Path(path).as_uri()


def fetch_all(
    addresses: Mapping[int, str], config: IngestConfig, limits: Exchange | None = None
) -> Iterator[tuple[int, bytes | Rejected]]:
    """The contents of `addresses`, each with its key, or why there is none: files in order, then downloads as they end.

    Args:
        addresses: as `fetch` takes them, or http:// and https:// URLs.
        config: bounds on bytes and time.
        limits: of the hosts of URLs; by default they hold within this call alone.

    Raises StorageError where the machine is at fault.
    """
    for key, address in addresses.items():
        if not is_url(address):
            content: bytes | Rejected
            try:
                content = fetch(address, config.max_bytes)
            except Rejected as rejected:
                content = rejected
            yield key, content
    urls = {key: address for key, address in addresses.items() if is_url(address)}
    if urls:
        yield from download(urls, config.max_bytes, config.http, limits or local_limits(config.http))


def fetch(source_uri: str, max_bytes: int) -> bytes:
    """The content of `source_uri`.

    It is an absolute path, or a ``file://`` URL where the path is not valid UTF-8; an object ``s3://bucket/key``; or
    a member of a tar at one of these, as `MemberAddress` writes it.

    Only regular files are read: a pipe or a device that lies in a crawl is left alone.

    Raises:
        Rejected: unreadable, or too_many_bytes (above `max_bytes`; nothing is read then).
        StorageError: the machine is at fault, and another attempt may succeed. A file that is gone counts as that:
            it was there when the crawl was listed.
    """
    if (member := parse_member(source_uri)) is not None:
        return read_member(member, max_bytes, open_stream)
    if source_uri.startswith(S3_SCHEME):
        return read_object(source_uri, max_bytes)
    return _read_file(source_uri, max_bytes)


def open_stream(source_uri: str) -> BinaryIO:
    """The file or S3 object at `source_uri`, unbuffered, to be read from any place.

    Raises what `fetch` does, but for too_many_bytes.
    """
    if source_uri.startswith(S3_SCHEME):
        return cast(BinaryIO, S3Stream(source_uri))
    with _faults(source_uri):
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(local_path(source_uri), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Rejected("unreadable", "not a regular file")
        return cast(BinaryIO, os.fdopen(descriptor, "rb", buffering=0))


def _read_file(source_uri: str, max_bytes: int) -> bytes:
    with _faults(source_uri), open_stream(source_uri) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise Rejected("too_many_bytes", f"{size} bytes, at most {max_bytes} are read")
        data = bytearray()
        while len(data) <= max_bytes and (part := file.read(max(1, size + 1 - len(data)))):
            data += part
    if len(data) > max_bytes:
        raise Rejected("too_many_bytes", f"grew above {max_bytes} bytes while it was read")
    return bytes(data)


@contextmanager
def _faults(source_uri: str) -> Iterator[None]:
    """What goes wrong with a file, as the errors of this package."""
    try:
        yield
    except OSError as error:
        raise_machine_fault(source_uri, error)
        raise Rejected("unreadable", error.strerror or str(error)) from error
    except ValueError as error:  # a path that no system call takes
        raise Rejected("unreadable", str(error)) from error


def local_path(source_uri: str) -> str:
    """The path that `file_uri` made `source_uri` of."""
    if source_uri.startswith(FILE_SCHEME):
        return os.fsdecode(unquote_to_bytes(source_uri.removeprefix(FILE_SCHEME)))
    return source_uri
