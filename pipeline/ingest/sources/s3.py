"""Objects of S3 buckets as sources: whole, by range, as a stream, and listed a folder at a time.

Credentials, region and endpoint come from boto3's own environment variables and files, as for a workspace.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import SourceError, StorageError
from pipeline.ingest.rejection import Rejected

S3_SCHEME = "s3://"

STREAM_BUFFER_BYTES = 1 << 20
"""Read by one request of a stream."""

READ_ATTEMPTS = 4
"""Of a range whose connection broke while it was read: boto3 repeats requests, but not the reading of an answer."""

_MISSING = {"404", "NoSuchKey", "NotFound"}


def split_address(uri: str) -> tuple[str, str]:
    """Bucket and key of ``s3://bucket/key``. Raises SourceError where there is no bucket."""
    bucket, _, key = uri.removeprefix(S3_SCHEME).partition("/")
    if not bucket:
        raise SourceError(f"source {uri}: expected s3://bucket/prefix")
    return bucket, key


def object_size(uri: str) -> int | None:
    """Bytes of the object at `uri`; None where there is none. Raises SourceError where there is no such bucket."""
    bucket, key = split_address(uri)
    try:
        with _explained(uri):
            return int(_client().head_object(Bucket=bucket, Key=key)["ContentLength"])
    except StorageError as error:
        if _code(error) in _MISSING:
            return None
        raise


def list_folder(uri: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Pages of the keys and of the folders directly below `prefix` in the bucket of `uri`, as boto3 returns them.

    Raises SourceError where there is no such bucket, StorageError where S3 refuses or cannot be reached.
    """
    bucket, _ = split_address(uri)
    with _explained(uri):
        paginator = _client().get_paginator("list_objects_v2")
        yield from paginator.paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")


def read_object(uri: str, max_bytes: int) -> bytes:
    """The content of the object at `uri`.

    Raises:
        Rejected: too_many_bytes (above `max_bytes`; nothing is read then), or unreadable where it is archived.
        StorageError: S3 refuses or fails, or the object is gone since it was listed.
    """
    bucket, key = split_address(uri)
    with _explained(uri):
        answer = _client().get_object(Bucket=bucket, Key=key)
        with answer["Body"] as body:
            size = answer["ContentLength"]
            if size > max_bytes:
                raise Rejected("too_many_bytes", f"{size} bytes, at most {max_bytes} are read")
            return bytes(body.read())


def download(uri: str, path: Path) -> None:
    """Write the object at `uri` to the local file `path`. Raises StorageError where S3 or the disk refuses."""
    bucket, key = split_address(uri)
    with _explained(uri):
        _client().download_file(bucket, key, str(path))


class S3Stream(io.RawIOBase):
    """An object that is read by ranges. Its size is asked for only where somebody seeks from the end."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._bucket, self._key = split_address(uri)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
        self._position = (self._size() if start is None else start) + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if not view:
            return 0
        for attempt in range(READ_ATTEMPTS):
            try:
                data = self._range(self._position, len(view))
                break
            except StorageError as error:
                if _code(error) == "InvalidRange":  # S3's answer to a read at the end
                    return 0
                if attempt == READ_ATTEMPTS - 1 or _code(error) is not None:
                    raise
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _size(self) -> int:
        size = object_size(self._uri)
        if size is None:
            raise StorageError(f"cannot read {self._uri}: gone since it was listed; run the same command again")
        return size

    def _range(self, start: int, size: int) -> bytes:
        with _explained(self._uri):
            answer = _client().get_object(Bucket=self._bucket, Key=self._key, Range=f"bytes={start}-{start + size - 1}")
            with answer["Body"] as body:
                return bytes(body.read(size))


@cache
def _client() -> Any:
    """One for the process: it is safe among threads, and slow to make."""
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(retries={"mode": "adaptive", "max_attempts": 8}))


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        if code == "NoSuchBucket":
            raise SourceError(f"source {uri}: no such bucket") from error
        if code == "InvalidObjectState":
            raise Rejected("unreadable", "archived; restore it in S3 first") from error
        raise StorageError(f"cannot read {uri}: {error}") from error
    except (Boto3Error, BotoCoreError, OSError) as error:
        raise StorageError(f"cannot read {uri}: {error}") from error


def _code(error: StorageError) -> str | None:
    """What S3 answered; None where it did not."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code")) if isinstance(response, dict) else None
