"""Sources of every layout give the same records from a local folder and from a bucket of an S3 server on loopback."""

from __future__ import annotations

import gzip
import io
import itertools
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

from pipeline.errors import ConfigError, SourceError, StorageError
from pipeline.ingest.plan import write_plan
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources import s3
from pipeline.ingest.sources.arrays.labelled_arrays import read_record
from pipeline.ingest.sources.content import read_content
from pipeline.ingest.sources.detect import read_records
from pipeline.ingest.stage import check_workspace_location
from pipeline.storage import open_storage
from tests.support.array_files import idx
from tests.support.crawl_files import encoded, photograph
from tests.support.dump_files import (
    Files,
    gallery_dl_dump,
    img2dataset_dump,
    instaloader_dump,
    megadepth_tree,
    parquet,
    put,
    tar,
    zipped,
)
from tests.support.s3_server import CREDENTIALS, S3Server, s3_bucket, s3_endpoint, s3_server

__all__ = ["s3_bucket", "s3_endpoint", "s3_server"]

URLS = b"id,url\n1,https://example.org/1.jpg\n2,https://example.org/2.jpg\n"
IMAGES = [(f"{i}.png", encoded(photograph(i), "PNG")) for i in range(3)]

SOURCES: dict[str, tuple[Files, str]] = {
    "folder": ({"b/2.jpg": b"2", "z.jpg": b"z", "a/x/1.jpg": b"1", "é ☃#%+&.jpg": b"x", ".hid": b""}, ""),
    "instaloader": (instaloader_dump(), ""),
    "gallery-dl": (gallery_dl_dump(), ""),
    "img2dataset": (img2dataset_dump(), ""),
    "scene": (megadepth_tree(), "/phoenix/S6/zl548/MegaDepth_v1/0000"),
    "scene in a tree": (megadepth_tree(), "/0000"),
    "tar": ({"x.tar": tar(IMAGES)}, "/x.tar"),
    "packed tar": ({"x.tar.gz": tar(IMAGES, "w:gz")}, "/x.tar.gz"),
    "zip": ({"x.zip": zipped(IMAGES)}, "/x.zip"),
    "zip in a folder": ({"x.zip": zipped(IMAGES), "1.jpg": b"1"}, ""),
    "zip of a table": ({"x.zip": zipped([("x.csv", URLS)])}, "/x.zip"),
    "table": ({"x.csv": URLS}, "/x.csv"),
    "packed table": ({"x.csv.gz": gzip.compress(URLS)}, "/x.csv.gz"),
    "parquet": ({"x.parquet": parquet({"url": [f"https://a.example/{i}" for i in range(3000)]})}, "/x.parquet"),
    "tables": ({"a.csv": URLS, "b.csv": URLS}, ""),
}  # fmt: skip


def upload(bucket: str, files: Files, prefix: str = "crawls/x") -> str:
    import boto3

    client = boto3.client("s3")
    for name, data in files.items():
        client.put_object(Bucket=bucket, Key=f"{prefix}/{name}" if prefix else name, Body=data)
    return f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"


@pytest.mark.parametrize("prefix", ["crawls/#trevi", ""], ids=["prefix", "bucket"])
@pytest.mark.parametrize("name", SOURCES)
def test_a_bucket_and_a_folder_give_the_same_records(name: str, prefix: str, s3_bucket: str, tmp_path: Path) -> None:
    files, below = SOURCES[name]
    local = list(read_records(str(put(tmp_path / "x", files)) + below))
    remote = list(read_records(upload(s3_bucket, files, prefix) + below))
    plans = [write_plan(records, tmp_path / "plan.parquet", 10).listing_digest for records in (local, remote)]
    assert plans[0] == plans[1]
    for local_record, remote_record in zip(local, remote, strict=True):
        if local_record.problem is None and not local_record.source_uri.startswith("https://"):
            assert remote_record.source_uri.startswith(f"s3://{s3_bucket}/")
            assert read_content(remote_record.source_uri, 10**6) == read_content(local_record.source_uri, 10**6)


@pytest.mark.parametrize("below", ["", "/train-images-idx3-ubyte", "/x.npz"])
def test_labelled_arrays_in_a_bucket(below: str, s3_bucket: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8)).astype(np.uint8)
    labels = np.array([5, 0, 4, 5], np.uint8)
    put(tmp_path, {"train-images-idx3-ubyte": idx(images), "train-labels-idx1-ubyte": idx(labels)})
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    source = upload(s3_bucket, {path.name: path.read_bytes() for path in tmp_path.iterdir()})
    found = list(read_records(source + below))
    assert [r.label for r in found] == ["5", "0", "4", "5"]
    for index, record in enumerate(found):
        assert record.source_uri.startswith(f"{source}/")
        assert record.array_sha256 is not None
        assert np.array_equal(read_record(record.source_uri, index, record.array_sha256)[..., 0], images[index])


def test_only_the_bytes_of_a_member_are_requested(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    large = [(f"{i}.jpg", bytes([i]) * 100_000) for i in range(20)]
    source = upload(s3_bucket, {"x.tar": tar(large)})
    record = list(read_records(f"{source}/x.tar"))[7]
    asked: list[str] = []
    get = s3._client().get_object

    def seen(**request: Any) -> Any:
        asked.append(request.get("Range", "all"))
        return get(**request)

    monkeypatch.setattr(s3._client(), "get_object", seen)
    assert read_content(record.source_uri, 10**6) == bytes([7]) * 100_000
    start = 512 + 7 * (512 + 100_352)
    assert asked == [f"bytes={start}-{start + 100_000 - 1}"]


def test_a_long_listing_is_complete(s3_bucket: str) -> None:
    source = upload(s3_bucket, {f"{i:04d}.jpg": b"x" for i in range(1005)})
    assert len(list(read_records(source))) == 1005


def test_missing_and_too_large_files(s3_bucket: str) -> None:
    source = upload(s3_bucket, {"1.jpg": b"12345"})
    with pytest.raises(Rejected) as caught:
        read_content(f"{source}/1.jpg", 4)
    assert (caught.value.reason, caught.value.detail) == ("too_many_bytes", "5 bytes, at most 4 are read")
    for missing in (f"{source}/2.jpg", f"{source}/2.tar#member=1.jpg&offset=512&size=5"):
        with pytest.raises(Rejected, match="missing_file"):
            read_content(missing, 10)
    with pytest.raises(SourceError, match="no such file or folder"):
        list(read_records(f"{source}/none"))
    with pytest.raises(SourceError, match="no such bucket"):
        list(read_records("s3://nobody/x"))
    with pytest.raises(SourceError, match="expected s3://bucket/prefix"):
        list(read_records("s3://"))
    with pytest.raises(SourceError, match="expected a folder, found a file"):
        list(read_records(f"{source}/1.jpg", "folder"))
    with pytest.raises(SourceError, match=rf"source {source}/1\.jpg: expected an \.npz file"):
        list(read_records(f"{source}/1.jpg", "npz"))


def test_a_broken_connection_is_resumed(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ResponseStreamingError

    data = bytes(range(256)) * 10_000
    source = upload(s3_bucket, {"x": data})
    failures = [True, True, False, True, False, False]

    def breaking(self: s3.S3Stream, start: int, size: int) -> bytes:
        if failures and failures.pop(0):
            try:
                raise ResponseStreamingError(error="reset")
            except ResponseStreamingError as error:
                raise StorageError("cannot read") from error
        return whole(self, start, size)

    whole = s3.S3Stream._range
    monkeypatch.setattr(s3.S3Stream, "_range", breaking)
    assert io.BufferedReader(s3.S3Stream(f"{source}/x"), 2**20).read() == data
    failures += [True] * s3.READ_ATTEMPTS
    with pytest.raises(StorageError):
        s3.S3Stream(f"{source}/x").read(10)


def test_a_key_that_looks_like_a_member_of_another_object_is_not_opened(s3_bucket: str) -> None:
    source = upload(s3_bucket, {"private.tar": b"secret", "in/1.jpg#member=x&offset=0&size=3": b"x"})
    (record,) = read_records(f"{source}/in")
    assert record.problem == "unreadable"


def test_a_workspace_inside_its_source_is_refused(s3_bucket: str) -> None:
    for source in (f"s3://{s3_bucket}", f"s3://{s3_bucket}/ws/", f"s3://{s3_bucket}/ws"):
        with pytest.raises(ConfigError, match="lies inside the source"):
            check_workspace_location([source], open_storage(f"s3://{s3_bucket}/ws"))
    check_workspace_location([f"s3://{s3_bucket}/w", f"s3://{s3_bucket}/ws/x"], open_storage(f"s3://{s3_bucket}/ws"))


def test_a_public_bucket_needs_no_credentials(
    s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = upload(s3_bucket, {"1.jpg": b"one", "x.tar": tar(IMAGES)})
    for key in ("crawls/x/1.jpg", "crawls/x/x.tar"):
        boto3.client("s3").put_object_acl(Bucket=s3_bucket, Key=key, ACL="public-read")
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # has found the credentials already
    s3._cached_client.cache_clear()
    with pytest.raises(StorageError, match=r"no credentials; .*--set ingest\.s3_access=unsigned"):
        list(read_records(source))
    s3.use_access("unsigned")
    try:
        records = list(read_records(source))
        assert b"one" in [read_content(record.source_uri, 10**6) for record in records]
        assert len(records) == 4
    finally:
        s3.use_access("signed")


def test_the_reader_of_a_bucket_can_accept_its_costs(s3_bucket: str, s3_server: S3Server, tmp_path: Path) -> None:
    source = upload(s3_bucket, {"1.jpg": b"one", "x.tar": tar(IMAGES)})
    s3_server.refuse_without_payer = True
    with pytest.raises(StorageError, match="AccessDenied"):
        list(read_records(source))
    s3.use_access("requester-pays")
    try:
        assert [len(read_content(record.source_uri, 10**6)) > 2 for record in read_records(source)] == [True] * 4
        s3.download(f"{source}/1.jpg", tmp_path / "copy")
    finally:
        s3.use_access("signed")


@pytest.mark.slow
@pytest.mark.parametrize(
    "refusal", [("503 Slow Down", "SlowDown"), ("500 Internal Server Error", "InternalError")], ids=["slow", "error"]
)
def test_a_bucket_that_fails_now_and_then_is_read_nevertheless(
    refusal: tuple[str, str], s3_bucket: str, s3_server: S3Server
) -> None:
    files = {"0.jpg": b"0", "x.tar": tar(IMAGES[:1]), "x.zip": zipped(IMAGES[:1])}
    source = upload(s3_bucket, files)
    whole = [(record.file_name, read_content(record.source_uri, 10**6)) for record in read_records(source)]
    counts = itertools.count()
    s3_server.refuse = lambda method, path: refusal if next(counts) % 2 else None
    found = [(record.file_name, read_content(record.source_uri, 10**6)) for record in read_records(source)]
    assert found == whole
    assert len(found) == 3
    assert next(counts) > 10
