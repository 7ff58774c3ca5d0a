"""Contract of Storage, tested on a local folder and on an S3 server on loopback."""

from __future__ import annotations

import errno
import pickle
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, StorageError, UnavailableError
from pipeline.storage import (
    TABLES_AHEAD,
    LocalStorage,
    S3Storage,
    Storage,
    open_storage,
    read_json,
    read_table,
    read_tables,
    write_json,
)
from pipeline.storage import write_table as publish_table
from tests.support.s3_server import S3Server, s3_bucket, s3_endpoint, s3_server

__all__ = ["s3_bucket", "s3_endpoint", "s3_server"]


@pytest.fixture(params=["folder", "s3", "s3 without a prefix"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "workspace"))
    bucket = request.getfixturevalue("s3_bucket")
    return open_storage(f"s3://{bucket}/deep/prefix/" if request.param == "s3" else f"s3://{bucket}")


def test_files_are_written_replaced_and_deleted(storage: Storage) -> None:
    assert not storage.exists("a/b.bin")
    storage.write_bytes("a/b.bin", b"one")
    storage.write_bytes("a/b.bin", b"two")
    assert storage.exists("a/b.bin")
    assert storage.read_bytes("a/b.bin") == b"two"
    storage.delete("a/b.bin")
    storage.delete("a/b.bin")
    assert not storage.exists("a/b.bin")


def test_publishing_keeps_the_local_file(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(bytes(3_000_000))
    storage.publish(tmp_path / "local", "a/file")
    assert storage.read_bytes("a/file") == (tmp_path / "local").read_bytes() == bytes(3_000_000)


def test_a_folder_is_not_a_key(storage: Storage) -> None:
    storage.write_bytes("a/b", b"")
    assert storage.exists("a/b")
    assert not storage.exists("a")


def test_a_list_is_sorted_and_limited_to_one_folder(storage: Storage) -> None:
    for key in ("a/2", "a/10", "a/sub/x", "ab/1", "b"):
        storage.write_bytes(key, b"")
    assert list(storage.list("a")) == ["a/10", "a/2", "a/sub/x"]
    assert list(storage.list("")) == ["a/10", "a/2", "a/sub/x", "ab/1", "b"]
    assert list(storage.list("none")) == []


@pytest.mark.parametrize("storage", ["folder", "s3"], indirect=True)
def test_a_long_list_is_complete(storage: Storage) -> None:
    keys = [f"many/{i:04d}" for i in range(1005)]
    for key in keys:
        storage.write_bytes(key, b"")
    assert list(storage.list("many")) == keys


@pytest.mark.parametrize("key", ["#tag/ä ö/☃.bin", "a+b/%20=x.bin", "q?/x&y.bin"])
def test_keys_may_contain_special_characters(storage: Storage, key: str) -> None:
    storage.write_bytes(key, b"x")
    assert storage.read_bytes(key) == b"x"
    assert list(storage.list("")) == [key]


def test_a_missing_file_is_named_in_one_line(storage: Storage) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*none\.bin") as caught:
        storage.read_bytes("none.bin")
    assert "\n" not in str(caught.value)


def test_a_failing_publish_leaves_nothing(storage: Storage, tmp_path: Path) -> None:
    storage.write_bytes("a/kept", b"old")
    for source in (tmp_path / "absent", tmp_path):  # no such file; a folder
        with pytest.raises(StorageError, match="cannot write"):
            storage.publish(source, "a/kept")
    assert storage.read_bytes("a/kept") == b"old"
    assert list(storage.list("")) == ["a/kept"]


def test_storage_can_be_pickled(storage: Storage) -> None:
    storage.write_bytes("x", b"here")
    copy: Storage = pickle.loads(pickle.dumps(storage))
    assert (copy.root, copy.uri("x"), copy.read_bytes("x")) == (storage.root, storage.uri("x"), b"here")


def test_json_and_tables_are_read_as_written(storage: Storage) -> None:
    write_json(storage, "x.json", {"caption": "é☃", "n": [1, None]})
    assert read_json(storage, "x.json") == {"caption": "é☃", "n": [1, None]}
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    publish_table(storage, "x.parquet", table)
    assert read_table(storage, "x.parquet") == table
    assert read_table(storage, "x.parquet", ["b"]) == table.select(["b"])


def test_partial_writes_are_deleted(storage: Storage) -> None:
    storage.write_bytes("a/kept", b"whole")
    storage.write_bytes("b/kept", b"whole")
    if isinstance(storage, S3Storage):
        names = [storage._name(f"{folder}/torn") for folder in ("a", "b")]
        for name in names:
            storage.client.create_multipart_upload(Bucket=storage.bucket, Key=name)
    else:
        for folder in ("a", "b"):
            Path(storage.uri(f"{folder}/.torn.0.part")).write_bytes(b"a part")
    storage.delete_partial_writes("a")
    if isinstance(storage, S3Storage):
        left = storage.client.list_multipart_uploads(Bucket=storage.bucket)["Uploads"]
        assert [upload["Key"] for upload in left] == names[1:]
    else:
        assert [path.parent.name for path in Path(storage.root).rglob(".*.part")] == ["b"]
    assert [*storage.list("a"), *storage.list("b")] == ["a/kept", "b/kept"]


def test_tables_are_read_in_order_and_a_bounded_number_ahead(storage: Storage) -> None:
    keys = [f"{i}.parquet" for i in range(3 * TABLES_AHEAD)]
    for i, key in enumerate(keys):
        publish_table(storage, key, pa.table({"a": [i], "b": [0]}))
    asked = iter(keys)
    tables = read_tables(storage, asked, ["a"])
    assert next(tables) == pa.table({"a": [0]})
    assert next(asked) == keys[TABLES_AHEAD]
    rest = [table["a"][0].as_py() for table in tables]
    assert rest == [i for i in range(1, len(keys)) if i != TABLES_AHEAD]


def test_a_table_that_is_missing_among_many_is_a_storage_error(storage: Storage) -> None:
    publish_table(storage, "0.parquet", pa.table({"a": [0]}))
    tables = read_tables(storage, ["0.parquet", "1.parquet"])
    assert next(tables).num_rows == 1
    with pytest.raises(StorageError, match=r"1\.parquet"):
        next(tables)


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff"])
def test_invalid_json_is_a_storage_error(storage: Storage, content: bytes) -> None:
    storage.write_bytes("x.json", content)
    with pytest.raises(StorageError, match=r"x\.json"):
        read_json(storage, "x.json")


def test_a_broken_table_is_a_storage_error(storage: Storage) -> None:
    storage.write_bytes("x.parquet", b"PAR1")
    with pytest.raises(StorageError, match=r"x\.parquet: not a Parquet table"):
        read_table(storage, "x.parquet")


def test_a_local_write_is_invisible_until_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(str(tmp_path))
    seen: list[list[str]] = []
    rename = Path.replace

    def observed(path: Path, target: Path) -> Path:
        seen.append(list(storage.list("")))
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", observed)
    storage.write_bytes("a/x", b"1")
    assert seen == [[]]
    assert list(storage.list("")) == ["a/x"]


def test_a_local_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        LocalStorage(str(tmp_path / "file")).write_bytes("x", b"")


def test_a_local_folder_that_cannot_be_listed_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "rglob", fail)
    with pytest.raises(UnavailableError, match=r"cannot list .*: Input/output error"):
        list(LocalStorage(str(tmp_path)).list("a"))


OPERATIONS: list[Callable[[Storage], object]] = [
    lambda s: s.read_bytes("x"),
    lambda s: s.write_bytes("x", b""),
    lambda s: s.publish(Path(__file__), "x"),
    lambda s: list(s.list("")),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_missing_bucket_is_a_storage_error(s3_bucket: str, operation: Callable[[Storage], object]) -> None:
    with pytest.raises(StorageError, match=r"cannot .* s3://nobody") as caught:
        operation(S3Storage("s3://nobody/x"))
    assert "\n" not in str(caught.value)


def test_a_server_that_cannot_be_reached_is_a_storage_error(monkeypatch: pytest.MonkeyPatch, s3_bucket: str) -> None:
    from botocore.config import Config

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    storage = S3Storage(f"s3://{s3_bucket}")
    import boto3

    storage._client = boto3.client("s3", config=Config(retries={"total_max_attempts": 1}))
    with pytest.raises(UnavailableError, match=r"cannot read s3://bucket-.*/x: Could not connect"):
        storage.read_bytes("x")


@pytest.mark.parametrize(
    ("answer", "temporary"),
    [
        (("503 Slow Down", "SlowDown"), True),
        (("500 Internal Server Error", "InternalError"), True),
        (("403 Forbidden", "AccessDenied"), False),
    ],
)
def test_temporary_errors_are_distinguished_from_permanent_ones(
    s3_bucket: str, s3_server: S3Server, answer: tuple[str, str], temporary: bool
) -> None:
    import boto3
    from botocore.config import Config

    storage = S3Storage(f"s3://{s3_bucket}")
    storage._client = boto3.client("s3", config=Config(retries={"total_max_attempts": 1}))
    s3_server.refuse = lambda *_: answer
    for operation in (lambda: storage.read_bytes("x"), lambda: storage.exists("x")):
        with pytest.raises(StorageError) as caught:
            operation()
        assert isinstance(caught.value, UnavailableError) == temporary


def test_a_missing_file_is_a_permanent_error(storage: Storage) -> None:
    with pytest.raises(StorageError) as caught:
        storage.read_bytes("none.bin")
    assert not isinstance(caught.value, UnavailableError)


def test_forbidden_is_a_storage_error(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    storage = S3Storage(f"s3://{s3_bucket}")
    refusal = {"Error": {"Code": "403", "Message": "Forbidden"}, "ResponseMetadata": {"HTTPStatusCode": 403}}

    def refuse(**_: object) -> None:
        raise ClientError(refusal, "HeadObject")

    monkeypatch.setattr(storage.client, "head_object", refuse)
    with pytest.raises(StorageError, match="Forbidden"):
        storage.exists("x")


def test_a_large_file_is_sent_in_parts_and_is_complete(s3_bucket: str, tmp_path: Path) -> None:
    data = b"".join(bytes([i]) * 2**20 for i in range(18))
    (tmp_path / "large").write_bytes(data)
    storage = S3Storage(f"s3://{s3_bucket}/x")
    storage.publish(tmp_path / "large", "large")
    etag = storage.client.head_object(Bucket=s3_bucket, Key="x/large")["ETag"]
    assert "-" in etag, "the ETag of an object that was sent in parts ends with their number"
    assert storage.read_bytes("large") == data


def test_an_upload_that_is_refused_halfway_leaves_nothing(s3_bucket: str, s3_server: S3Server, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(18 * 2**20))
    storage = S3Storage(f"s3://{s3_bucket}/x")
    storage.write_bytes("large", b"old")
    s3_server.refuse = lambda _, path: ("403 Forbidden", "AccessDenied") if "partNumber=2" in path else None
    with pytest.raises(StorageError, match=r"cannot write s3://bucket-.*/x/large: .*AccessDenied") as caught:
        storage.publish(tmp_path / "large", "large")
    assert "\n" not in str(caught.value)
    assert storage.read_bytes("large") == b"old"
    assert "Uploads" not in storage.client.list_multipart_uploads(Bucket=s3_bucket)


def test_requests_to_a_busy_server_are_retried(s3_bucket: str, s3_server: S3Server) -> None:
    busy = ["first"]
    s3_server.refuse = lambda method, _: (
        ("503 Slow Down", "SlowDown") if method == "PUT" and busy and busy.pop() else None
    )
    storage = S3Storage(f"s3://{s3_bucket}")
    storage.write_bytes("x", b"x")
    assert not busy
    assert storage.read_bytes("x") == b"x"


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """Limit the files of this process to 1 MiB, to simulate a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files_only")
def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path / "ws"))
    storage.write_bytes("a/kept", b"old")
    with pytest.raises(StorageError, match=r"cannot write .*/a/kept: File too large; nothing was published"):
        storage.write_bytes("a/kept", bytes(2**20 + 1))
    assert storage.read_bytes("a/kept") == b"old"
    assert [path.name for path in (tmp_path / "ws" / "a").iterdir()] == ["kept"]


@pytest.mark.usefixtures("small_files_only")
def test_a_full_disk_for_temporary_files_is_a_storage_error(storage: Storage) -> None:
    table = pa.table({"x": np.random.default_rng(0).integers(0, 2**63, 2**18)})
    with pytest.raises(StorageError, match="File too large") as caught:
        publish_table(storage, "x.parquet", table)
    assert "\n" not in str(caught.value)
    assert list(storage.list("")) == []


@pytest.mark.parametrize("root", ["gs://bucket/x", "http://host/x", "s3://", "s3:///x"])
def test_other_addresses_are_refused(root: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        open_storage(root)
