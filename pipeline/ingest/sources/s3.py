"""Objects of S3 buckets as sources: read whole, by range or as a stream, and listed one folder at a time.

Credentials, region and endpoint come from boto3's environment variables and files, as for a workspace. Public buckets
can be read without credentials, and buckets whose readers pay with the consent to do so (`use_access`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.config import S3Access
from pipeline.errors import SourceError, StorageError
from pipeline.ingest.rejection import Rejected

S3_SCHEME = "s3://"

STREAM_BUFFER_BYTES = 1 << 20
"""Number of bytes that one request of a stream reads."""

READ_ATTEMPTS = 4
"""Number of attempts to read a range whose connection breaks. boto3 repeats requests, but not the reading of bodies."""

_access: ContextVar[S3Access] = ContextVar("s3_access", default="signed")

_NOT_FOUND_CODES = {"404", "NoSuchKey", "NotFound"}


def use_access(access: S3Access) -> None:
    """From now on, read the buckets of sources in this thread as `IngestConfig.s3_access` describes it."""
    _access.set(access)


def split_address(uri: str) -> tuple[str, str]:
    """Split ``s3://bucket/key`` into bucket and key. Raises SourceError where the bucket is missing."""
    bucket, _, key = uri.removeprefix(S3_SCHEME).partition("/")
    if not bucket:
        raise SourceError(f"source {uri}: expected s3://bucket/prefix")
    return bucket, key


def object_size(uri: str) -> int | None:
    """Return the size of the object at `uri` in bytes; None if it does not exist.

    Raises SourceError where the bucket does not exist.
    """
    bucket, key = split_address(uri)
    try:
        with _translate_errors(uri):
            return int(_client().head_object(Bucket=bucket, Key=key, **_payer())["ContentLength"])
    except StorageError as error:
        if _error_code(error) in _NOT_FOUND_CODES:
            return None
        raise


def list_folder(uri: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Yield the pages of boto3's listing of the keys and folders directly below `prefix` in the bucket of `uri`.

    Raises SourceError where the bucket does not exist, StorageError where S3 refuses or cannot be reached.
    """
    bucket, _ = split_address(uri)
    with _translate_errors(uri):
        paginator = _client().get_paginator("list_objects_v2")
        yield from paginator.paginate(Bucket=bucket, Prefix=prefix, Delimiter="/", **_payer())


def read_object(uri: str, max_bytes: int) -> bytes:
    """Return the content of the object at `uri`.

    Raises:
        Rejected: too_many_bytes (above `max_bytes`; nothing is read then), unreadable where it is archived, or
            missing_file where it was deleted.
        StorageError: S3 refuses or fails.
    """
    bucket, key = split_address(uri)
    with _translate_errors(uri, missing="removed after the crawl was listed"):
        response = _client().get_object(Bucket=bucket, Key=key, **_payer())
        with response["Body"] as body:
            size = response["ContentLength"]
            if size > max_bytes:
                raise Rejected("too_many_bytes", f"{size} bytes, at most {max_bytes} are read")
            return bytes(body.read())


def download(uri: str, path: Path) -> None:
    """Write the object at `uri` to the local file `path`. Raises StorageError where S3 or the disk refuses."""
    bucket, key = split_address(uri)
    with _translate_errors(uri):
        _client().download_file(bucket, key, str(path), ExtraArgs=_payer())


class S3Stream(io.RawIOBase):
    """An object that is read by ranges. Its size is requested only when a caller seeks from the end."""

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
                if _error_code(error) == "InvalidRange":  # S3's response to a read at the end
                    return 0
                if attempt == READ_ATTEMPTS - 1 or _error_code(error) is not None:
                    raise
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _size(self) -> int:
        size = object_size(self._uri)
        if size is None:
            raise StorageError(f"cannot read {self._uri}: deleted after it was listed; run the same command again")
        return size

    def _range(self, start: int, size: int) -> bytes:
        with _translate_errors(self._uri, missing="removed after the crawl was listed"):
            response = _client().get_object(
                Bucket=self._bucket, Key=self._key, Range=f"bytes={start}-{start + size - 1}", **_payer()
            )
            with response["Body"] as body:
                return bytes(body.read(size))


def _client() -> Any:
    return _cached_client(_access.get() == "unsigned")


@cache
def _cached_client(unsigned: bool) -> Any:
    """Return the client of this process: it is thread-safe, and slow to create."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(retries={"mode": "adaptive", "max_attempts": 8})
    return boto3.client("s3", config=config.merge(Config(signature_version=UNSIGNED)) if unsigned else config)


def _payer() -> dict[str, str]:
    """Return the arguments of a request whose costs the reader accepts, if the user said so."""
    return {"RequestPayer": "requester"} if _access.get() == "requester-pays" else {}


@contextmanager
def _translate_errors(uri: str, missing: str | None = None) -> Iterator[None]:
    """Translate errors of boto3 to SourceError, Rejected or StorageError.

    With `missing`, an object that does not exist is Rejected with this detail.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        if code == "NoSuchBucket":
            raise SourceError(f"source {uri}: no such bucket") from error
        if missing is not None and code in _NOT_FOUND_CODES:
            raise Rejected("missing_file", missing) from error
        if code == "InvalidObjectState":
            raise Rejected("unreadable", "archived; restore it in S3 first") from error
        raise StorageError(f"cannot read {uri}: {error}") from error
    except NoCredentialsError as error:
        raise StorageError(
            f"cannot read {uri}: boto3 finds no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or read "
            "a public bucket with --set ingest.s3_access=unsigned"
        ) from error
    except (Boto3Error, BotoCoreError, OSError) as error:
        raise StorageError(f"cannot read {uri}: {error}") from error


def _error_code(error: StorageError) -> str | None:
    """Return the error code in S3's response; None if there was no response."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code")) if isinstance(response, dict) else None
