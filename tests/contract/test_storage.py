"""What every Storage promises, on a local folder and on an S3 server on loopback."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, StorageError
from pipeline.storage import LocalStorage, S3Storage, Storage, open_storage, read_json, read_table, write_json
from pipeline.storage import write_table as publish_table
from tests.s3_server import s3_bucket, s3_endpoint

__all__ = ["s3_bucket", "s3_endpoint"]


@pytest.fixture(params=["folder", "s3", "s3 without a prefix"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(str(tmp_path / "workspace"))
    bucket = request.getfixturevalue("s3_bucket")
    return open_storage(f"s3://{bucket}/deep/prefix/" if request.param == "s3" else f"s3://{bucket}")


def test_what_is_written_is_read_replaced_and_deleted(storage: Storage) -> None:
    assert not storage.exists("a/b.bin")
    storage.write_bytes("a/b.bin", b"one")
    storage.write_bytes("a/b.bin", b"two")
    assert storage.exists("a/b.bin")
    assert storage.read_bytes("a/b.bin") == b"two"
    storage.delete("a/b.bin")
    storage.delete("a/b.bin")
    assert not storage.exists("a/b.bin")


def test_a_published_file_stays_where_it_was(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(bytes(3_000_000))
    storage.publish(tmp_path / "local", "a/file")
    assert storage.read_bytes("a/file") == (tmp_path / "local").read_bytes() == bytes(3_000_000)


def test_a_folder_is_no_key(storage: Storage) -> None:
    storage.write_bytes("a/b", b"")
    assert storage.exists("a/b")
    assert not storage.exists("a")


def test_a_list_is_sorted_and_of_one_folder(storage: Storage) -> None:
    for key in ("a/2", "a/10", "a/sub/x", "ab/1", "b"):
        storage.write_bytes(key, b"")
    assert list(storage.list("a")) == ["a/10", "a/2", "a/sub/x"]
    assert list(storage.list("")) == ["a/10", "a/2", "a/sub/x", "ab/1", "b"]
    assert list(storage.list("none")) == []


@pytest.mark.parametrize("storage", ["folder", "s3"], indirect=True)
def test_a_long_list_is_whole(storage: Storage) -> None:
    keys = [f"many/{i:04d}" for i in range(1005)]
    for key in keys:
        storage.write_bytes(key, b"")
    assert list(storage.list("many")) == keys


@pytest.mark.parametrize("key", ["#tag/ä ö/☃.bin", "a+b/%20=x.bin", "q?/x&y.bin"])
def test_keys_may_hold_anything(storage: Storage, key: str) -> None:
    storage.write_bytes(key, b"x")
    assert storage.read_bytes(key) == b"x"
    assert list(storage.list("")) == [key]


def test_what_is_missing_is_named_in_one_line(storage: Storage) -> None:
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


def test_it_travels_to_another_process(storage: Storage) -> None:
    storage.write_bytes("x", b"here")
    copy: Storage = pickle.loads(pickle.dumps(storage))
    assert (copy.root, copy.uri("x"), copy.read_bytes("x")) == (storage.root, storage.uri("x"), b"here")


def test_json_and_tables_come_back(storage: Storage) -> None:
    write_json(storage, "x.json", {"caption": "é☃", "n": [1, None]})
    assert read_json(storage, "x.json") == {"caption": "é☃", "n": [1, None]}
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    publish_table(storage, "x.parquet", table)
    assert read_table(storage, "x.parquet") == table
    assert read_table(storage, "x.parquet", ["b"]) == table.select(["b"])


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff"])
def test_json_of_another_kind_is_a_storage_error(storage: Storage, content: bytes) -> None:
    storage.write_bytes("x.json", content)
    with pytest.raises(StorageError, match=r"x\.json"):
        read_json(storage, "x.json")


def test_a_broken_table_is_a_storage_error(storage: Storage) -> None:
    storage.write_bytes("x.parquet", b"PAR1")
    with pytest.raises(StorageError, match=r"x\.parquet: not a Parquet table"):
        read_table(storage, "x.parquet")


def test_a_local_write_is_not_seen_before_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


OPERATIONS: list[Callable[[Storage], object]] = [
    lambda s: s.read_bytes("x"),
    lambda s: s.write_bytes("x", b""),
    lambda s: s.publish(Path(__file__), "x"),
    lambda s: list(s.list("")),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_bucket_that_is_not_there_is_a_storage_error(s3_bucket: str, operation: Callable[[Storage], object]) -> None:
    with pytest.raises(StorageError, match=r"cannot .* s3://nobody") as caught:
        operation(S3Storage("s3://nobody/x"))
    assert "\n" not in str(caught.value)


def test_a_server_that_cannot_be_reached_is_a_storage_error(monkeypatch: pytest.MonkeyPatch, s3_bucket: str) -> None:
    from botocore.config import Config

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    storage = S3Storage(f"s3://{s3_bucket}")
    import boto3

    storage._client = boto3.client("s3", config=Config(retries={"total_max_attempts": 1}))
    with pytest.raises(StorageError, match=r"cannot read s3://bucket-.*/x: Could not connect"):
        storage.read_bytes("x")


def test_forbidden_is_a_storage_error(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    storage = S3Storage(f"s3://{s3_bucket}")
    refusal = {"Error": {"Code": "403", "Message": "Forbidden"}, "ResponseMetadata": {"HTTPStatusCode": 403}}

    def refuse(**_: object) -> None:
        raise ClientError(refusal, "HeadObject")

    monkeypatch.setattr(storage.client, "head_object", refuse)
    with pytest.raises(StorageError, match="Forbidden"):
        storage.exists("x")


@pytest.mark.parametrize("root", ["gs://bucket/x", "http://host/x", "s3://", "s3:///x"])
def test_other_addresses_are_refused(root: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        open_storage(root)
