"""A record's address to its bytes, never more of them than allowed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote_to_bytes

from pipeline.config import IngestConfig
from pipeline.errors import StorageError
from pipeline.ingest.downloads import download, is_url
from pipeline.ingest.host_limits import Exchange, local_limits
from pipeline.ingest.rejection import Rejected

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
    """The address of the absolute `path` that `fetch` opens: the path itself, as long as UTF-8 can hold it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return Path(path).as_uri()
    return path


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
    """The content of the file `source_uri`: an absolute path, or a ``file://`` URL where the path is not valid UTF-8.

    Only regular files are read: a pipe or a device that lies in a crawl is left alone.

    Raises:
        Rejected: unreadable, or too_many_bytes (above `max_bytes`; nothing is read then).
        StorageError: the machine is at fault, and another attempt may succeed. A file that is gone counts as that:
            it was there when the crawl was listed.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        with os.fdopen(os.open(local_path(source_uri), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Rejected("unreadable", "not a regular file")
            if status.st_size > max_bytes:
                raise Rejected("too_many_bytes", f"{status.st_size} bytes, at most {max_bytes} are read")
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise_machine_fault(source_uri, error)
        raise Rejected("unreadable", error.strerror or str(error)) from error
    except ValueError as error:  # a path that no system call takes
        raise Rejected("unreadable", str(error)) from error
    if len(data) > max_bytes:
        raise Rejected("too_many_bytes", f"grew above {max_bytes} bytes while it was read")
    return data


def local_path(source_uri: str) -> str:
    """The path that `file_uri` made `source_uri` of."""
    if source_uri.startswith(FILE_SCHEME):
        return os.fsdecode(unquote_to_bytes(source_uri.removeprefix(FILE_SCHEME)))
    return source_uri
