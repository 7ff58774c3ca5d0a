"""One interface to a local folder and to ``s3://bucket/prefix``. Writes are atomic: files are published as a whole.

A key is a relative path with forward slashes. Storage objects can be pickled and sent to Ray tasks, because they open
connections and files only when they are used.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, StorageError, UnavailableError

TRANSIENT_ERRNOS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ENFILE, errno.EMFILE}
"""Error numbers of temporary failures, which network file systems and overloaded systems return occasionally."""
TABLES_AHEAD = 8
"""Number of tables that `read_tables` reads in parallel."""


class Storage(Protocol):
    """Interface to the files of a workspace: crawls, shards, trials and reports."""

    root: str
    """Root of the workspace: the absolute path of a folder, or an ``s3://`` address."""

    def uri(self, key: str) -> str:
        """Return the path or the ``s3://`` address of `key`, for messages and other tools."""

    def exists(self, key: str) -> bool:
        """Whether the file `key` exists."""

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys of all files below the folder `prefix`, sorted."""

    def read_bytes(self, key: str) -> bytes:
        """Return the content of `key`.

        Raises StorageError if the file does not exist, and UnavailableError for temporary failures.
        """

    def write_bytes(self, key: str, data: bytes) -> None:
        """Publish `data` as `key` atomically: readers see the old or the new content, never a part of it."""

    def publish(self, path: Path, key: str) -> None:
        """Publish a copy of the local file `path` as `key` atomically."""

    def delete(self, key: str) -> None:
        """Delete the file `key` if it exists."""

    def delete_partial_writes(self, prefix: str) -> None:
        """Delete the remains of interrupted writes below the folder `prefix`; no other job may be writing there."""


def open_storage(root: str) -> Storage:
    """Return the storage at ``s3://bucket/prefix`` or in a local folder, which need not exist yet.

    Raises ConfigError for any other scheme.
    """
    if root.startswith("s3://"):
        return S3Storage(root)
    if "://" in root:
        raise ConfigError(f"workspace {root!r}: expected a folder or s3://bucket/prefix")
    return LocalStorage(root)


class LocalStorage:
    """Storage in a local folder. Files are written under a hidden name and then renamed, which POSIX makes atomic."""

    def __init__(self, root: str) -> None:
        self.root = str(Path(root).expanduser().absolute())

    def uri(self, key: str) -> str:
        return os.path.join(self.root, key)

    def exists(self, key: str) -> bool:
        with self._explained(key, "read"):
            return Path(self.uri(key)).is_file()

    def list(self, prefix: str) -> Iterator[str]:
        with self._explained(prefix, "list"):
            paths = (p for p in Path(self.uri(prefix)).rglob("*") if p.is_file() and not p.name.startswith("."))
            keys = sorted(p.relative_to(self.root).as_posix() for p in paths)
        yield from keys

    def read_bytes(self, key: str) -> bytes:
        with self._explained(key, "read"):
            return Path(self.uri(key)).read_bytes()

    def write_bytes(self, key: str, data: bytes) -> None:
        with self._replacing(key) as part:
            part.write_bytes(data)

    def publish(self, path: Path, key: str) -> None:
        with self._replacing(key) as part, path.open("rb") as source, part.open("wb") as target:
            while block := source.read(1 << 20):
                target.write(block)

    def delete(self, key: str) -> None:
        with self._explained(key, "delete"):
            Path(self.uri(key)).unlink(missing_ok=True)

    def delete_partial_writes(self, prefix: str) -> None:
        with self._explained(prefix, "clean up"):
            for part in list(Path(self.uri(prefix)).rglob(".*.part")):
                part.unlink(missing_ok=True)

    @contextmanager
    def _explained(self, key: str, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind = UnavailableError if error.errno in TRANSIENT_ERRNOS else StorageError
            raise kind(f"cannot {verb} {self.uri(key)}: {error.strerror}") from error

    @contextmanager
    def _replacing(self, key: str) -> Iterator[Path]:
        target = Path(self.uri(key))
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(target)
        except OSError as error:
            raise StorageError(f"cannot write {target}: {error.strerror}; nothing was published") from error
        finally:
            with suppress(OSError):
                part.unlink()


_client_creation = threading.Lock()  # boto3 clients are thread-safe, but their creation is not


class S3Storage:
    """Storage below a prefix of an S3 bucket; S3 publishes objects atomically.

    boto3 reads the credentials, the region and a custom endpoint from its environment variables and configuration files
    (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_S3, …).
    """

    def __init__(self, root: str) -> None:
        self.bucket, _, self.prefix = root.removeprefix("s3://").rstrip("/").partition("/")
        if not self.bucket:
            raise ConfigError(f"workspace {root!r}: expected s3://bucket/prefix")
        self.root = root.rstrip("/")
        self._client: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    @property
    def client(self) -> Any:
        """The boto3 client of this process, created at its first use."""
        with _client_creation:
            if self._client is None:
                import boto3
                from botocore.config import Config

                self._client = boto3.client("s3", config=Config(retries={"mode": "adaptive", "max_attempts": 8}))
        return self._client

    def uri(self, key: str) -> str:
        return f"{self.root}/{key}"

    def exists(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            with self._explained(key, "read"):
                self.client.head_object(Bucket=self.bucket, Key=self._name(key))
        except StorageError as error:
            cause = error.__cause__
            if isinstance(cause, ClientError) and cause.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return False
            raise
        return True

    def list(self, prefix: str) -> Iterator[str]:
        start = self._name(prefix.rstrip("/") + "/") if prefix else (f"{self.prefix}/" if self.prefix else "")
        cut = len(self.prefix) + 1 if self.prefix else 0
        with self._explained(prefix, "list"):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start):
                yield from (item["Key"][cut:] for item in page.get("Contents", ()))

    def read_bytes(self, key: str) -> bytes:
        with self._explained(key, "read"):
            return bytes(self.client.get_object(Bucket=self.bucket, Key=self._name(key))["Body"].read())

    def write_bytes(self, key: str, data: bytes) -> None:
        with self._explained(key, "write"):
            self.client.put_object(Bucket=self.bucket, Key=self._name(key), Body=data)

    def publish(self, path: Path, key: str) -> None:
        with self._explained(key, "write"):
            self.client.upload_file(str(path), self.bucket, self._name(key))

    def delete(self, key: str) -> None:
        with self._explained(key, "delete"):
            self.client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def delete_partial_writes(self, prefix: str) -> None:
        with self._explained(prefix, "clean up"):
            pages = self.client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._name(prefix.rstrip("/") + "/")):
                for upload in page.get("Uploads", ()):
                    self.client.abort_multipart_upload(
                        Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    @contextmanager
    def _explained(self, key: str, verb: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
            kind = UnavailableError if _is_temporary(error) else StorageError
            raise kind(f"cannot {verb} {self.uri(key)}: {error}") from error


def _is_temporary(error: Exception) -> bool:
    """Whether a failed S3 request may succeed later: the server did not answer, was overloaded or had an error."""
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status in {408, 429} or status >= 500
    if isinstance(error, (exceptions.SSLError, FileNotFoundError)):
        return False  # an invalid certificate, or a missing list of trusted certificates
    temporary = (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError, OSError)
    return isinstance(error, temporary)


def read_json(storage: Storage, key: str) -> dict[str, Any]:
    """Return the JSON object stored as `key`; raise StorageError if it is missing or not a JSON object."""
    try:
        document = json.loads(storage.read_bytes(key))
    except ValueError as error:
        raise StorageError(f"{storage.uri(key)}: not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise StorageError(f"{storage.uri(key)}: expected a JSON object, found {type(document).__name__}")
    return document


def write_json(storage: Storage, key: str, document: dict[str, Any]) -> None:
    """Publish `document` as indented JSON."""
    storage.write_bytes(key, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def read_table(storage: Storage, key: str, columns: list[str] | None = None) -> pa.Table:
    """Return the Parquet table stored as `key`, or only `columns` of it.

    Raises StorageError if it is missing or not a Parquet table.
    """
    try:
        return pq.read_table(pa.BufferReader(storage.read_bytes(key)), columns=columns)
    except pa.ArrowException as error:
        raise StorageError(f"{storage.uri(key)}: not a Parquet table ({error})") from error


def read_tables(storage: Storage, keys: Iterable[str], columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the Parquet tables stored as `keys`, in order; `TABLES_AHEAD` of them are read in parallel."""
    with ThreadPoolExecutor(TABLES_AHEAD, "table") as threads:
        ahead: deque[Future[pa.Table]] = deque()
        try:
            for key in keys:
                ahead.append(threads.submit(read_table, storage, key, columns))
                if len(ahead) == TABLES_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Context with a temporary local folder for files that are published afterwards.

    Raises StorageError if a file cannot be written, for example because the disk is full.
    """
    with local_writes(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def local_writes(path: Path) -> Iterator[None]:
    """Context that turns an OSError into a StorageError about `path`, a local file or folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"cannot write {path}: {reason}; make it writable, then run the same command again to continue"
        ) from error


def write_table(storage: Storage, key: str, table: pa.Table) -> None:
    """Publish `table` as zstd-compressed Parquet."""
    with scratch_folder() as folder:
        path = folder / "table.parquet"
        pq.write_table(table, path, compression="zstd")
        storage.publish(path, key)
