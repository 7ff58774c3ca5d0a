"""Read local files, S3 objects and members of tars by their addresses, never more bytes than allowed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote_to_bytes

from pipeline.errors import StorageError
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.archives.members import open_zipped, parse_member, read_member
from pipeline.ingest.sources.s3 import S3_SCHEME, S3Stream, read_object

FILE_SCHEME = "file://"

PERMANENT_FILE_ERRORS = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV,
        errno.EFBIG, errno.EOVERFLOW,
    }
)  # fmt: skip
"""Error numbers that depend on the file, so that every attempt to read it meets them.

All other errors are faults of the machine and may be temporary.
"""


def raise_machine_fault(path: str, error: OSError) -> None:
    """Raise StorageError if `error` is a fault of the machine; return if it is one of PERMANENT_FILE_ERRORS."""
    if error.errno not in PERMANENT_FILE_ERRORS:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot read {path}: {reason}; the same command continues once it can be read") from error


def file_uri(path: str) -> str:
    """Return the address of the absolute `path` for `read_content`: the path itself, or a ``file://`` URL.

    A URL is used where the path is not valid UTF-8, or could be mistaken for the address of a member of a tar.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        return Path(path).as_uri()
    return path if parse_member(path) is None else Path(path).as_uri()


def read_content(source_uri: str, max_bytes: int) -> bytes:
    """Return the content of `source_uri`.

    The address is an absolute path, or a ``file://`` URL where the path is not valid UTF-8; an object
    ``s3://bucket/key``; or a member of a tar or a ZIP at one of these, in the notation of `MemberAddress`.

    Only regular files are read; pipes and devices are refused.

    Raises:
        Rejected: unreadable, too_many_bytes (above `max_bytes`; nothing is read then), or missing_file (removed after
            the crawl was listed).
        StorageError: a fault of the machine; another attempt may succeed. If the folder of the file is gone or empty,
            too, this counts as such a fault: a file system may not be mounted any more.
    """
    if (member := parse_member(source_uri)) is not None:
        return read_member(member, max_bytes, open_stream)
    if source_uri.startswith(S3_SCHEME):
        return read_object(source_uri, max_bytes)
    return _read_file(source_uri, max_bytes)


def open_stream(source_uri: str) -> BinaryIO:
    """Open the file, the S3 object or the member of a ZIP at `source_uri` as a seekable stream.

    Raises the same errors as `read_content`, except too_many_bytes.
    """
    if (member := parse_member(source_uri)) is not None:
        return open_zipped(member, open_stream)
    if source_uri.startswith(S3_SCHEME):
        return cast(BinaryIO, S3Stream(source_uri))
    with _translate_errors(source_uri):
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(local_path(source_uri), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Rejected("unreadable", "not a regular file")
        return cast(BinaryIO, os.fdopen(descriptor, "rb", buffering=0))


def _read_file(source_uri: str, max_bytes: int) -> bytes:
    with _translate_errors(source_uri), open_stream(source_uri) as file:
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
def _translate_errors(source_uri: str) -> Iterator[None]:
    """Translate errors of the operating system to StorageError or Rejected."""
    try:
        yield
    except FileNotFoundError as error:
        if not _has_files(Path(local_path(source_uri)).parent):
            raise_machine_fault(source_uri, error)
        raise Rejected("missing_file", "removed after the crawl was listed") from error
    except OSError as error:
        raise_machine_fault(source_uri, error)
        raise Rejected("unreadable", error.strerror or str(error)) from error
    except ValueError as error:  # a path that no system call accepts
        raise Rejected("unreadable", str(error)) from error


def _has_files(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def local_path(source_uri: str) -> str:
    """Return the path for which `file_uri` returned `source_uri`."""
    if source_uri.startswith(FILE_SCHEME):
        return os.fsdecode(unquote_to_bytes(source_uri.removeprefix(FILE_SCHEME)))
    return source_uri
