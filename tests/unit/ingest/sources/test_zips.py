"""ZIP archives: as sources, inside folders, and hostile ones."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError, StorageError
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.archives import zips
from pipeline.ingest.sources.archives.members import MemberAddress, parse_member
from pipeline.ingest.sources.archives.zips import BrokenZip, list_members
from pipeline.ingest.sources.content import open_stream, read_content
from pipeline.ingest.sources.detect import read_records
from pipeline.records import CrawlRecord
from tests.support.dump_files import put, tar
from tests.support.fuzzing import fuzzed

IMAGES = [(f"photos/{i}.jpg", bytes([i]) * (700 * i + 1)) for i in range(6)]


def packed(files: Iterable[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return buffer.getvalue()


def read(path: Path) -> list[CrawlRecord]:
    return list(read_records(str(path)))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_records_that_are_read_in_place(method: int, tmp_path: Path) -> None:
    put(tmp_path, {"x.zip": packed(IMAGES, method)})
    for source in (tmp_path / "x.zip", tmp_path):
        found = read(source)
        assert [r.file_name for r in found] == [f"{i}.jpg" for i in range(6)]
        for record in found[::-1]:
            assert read_content(record.source_uri, 10_000) == dict(IMAGES)[f"photos/{record.file_name}"]
            with open_stream(record.source_uri) as stream:
                assert stream.read() == dict(IMAGES)[f"photos/{record.file_name}"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]
    with pytest.raises(Rejected, match="too_many_bytes"):
        read_content(found[5].source_uri, 10)


def test_an_archive_that_changed_after_it_was_listed_is_noticed(tmp_path: Path) -> None:
    put(tmp_path, {"x.zip": packed(IMAGES)})
    record = read(tmp_path)[3]
    put(tmp_path, {"x.zip": packed([("other.txt", os.urandom(9_000))])})
    with pytest.raises(Rejected, match="changed since the ZIP was listed"):
        read_content(record.source_uri, 10_000)


def test_metadata_beside_images_is_theirs(tmp_path: Path) -> None:
    files = [
        ("St. Peter's 1.jpg", b"1"), ("St. Peter's 2.jpg", b"2"), ("St. Peter's 1.json", b'{"caption": "one #Roma"}'),
        ("St. Peter's 2.txt", b"two"), ("__MACOSX/._x.jpg", b"x"), (".DS_Store", b"x"), ("folder/", b""),
    ]  # fmt: skip
    put(tmp_path, {"x.zip": packed(files)})
    found = read(tmp_path / "x.zip")
    assert [(r.file_name, r.caption, r.hashtags) for r in found] == [
        ("St. Peter's 1.jpg", "one #Roma", ["roma"]), ("St. Peter's 2.jpg", "two", []),
    ]  # fmt: skip


def named(name: str, encoding: str) -> bytes:
    """A ZIP with one member whose name is stored in `encoding`, without the flag of UTF-8."""
    raw = name.encode(encoding)
    data = packed([("x" * len(raw), b"content")])
    return data.replace(b"x" * len(raw), raw)


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("Größe.jpg", "cp437"),
        ("Größe.jpg", "utf-8"),
        ("清水寺の写真です.jpg", "shift_jis"),
        ("Москва зимой.jpg", "cp1251"),
    ],
)
def test_names_of_any_encoding_are_read(name: str, encoding: str, tmp_path: Path) -> None:
    put(tmp_path, {"x.zip": named(name, encoding)})
    (record,) = read(tmp_path / "x.zip")
    assert record.file_name == name or encoding == "cp437"  # other encodings are as likely for a short name
    assert read_content(record.source_uri, 100) == b"content"
    address = parse_member(record.source_uri)
    assert address is not None
    assert address.uri == record.source_uri


def test_paths_of_windows_and_paths_out_of_the_archive_are_only_names(tmp_path: Path) -> None:
    files = [("..\\..\\escape.jpg", b"1"), ("../../up.jpg", b"2"), ("/etc/root.jpg", b"3")]
    put(tmp_path / "in", {"x.zip": packed(files)})
    found = read(tmp_path / "in" / "x.zip")
    assert [r.file_name for r in found] == ["escape.jpg", "up.jpg", "root.jpg"]
    assert [read_content(r.source_uri, 10) for r in found] == [b"1", b"2", b"3"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "x.zip"]


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


def test_what_is_not_read_is_a_rejected_record_with_a_reason(tmp_path: Path) -> None:
    whole = bytearray(
        packed([("secret.jpg", b"s" * 50), (link("link.jpg"), b"/etc/passwd"), ("in.zip", packed([("a", b"b")])),
                ("in.tar.gz", b"x"), ("film.mp4", b"x"), ("good.jpg", b"good")])
    )  # fmt: skip
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        whole[whole.index(signature) + flags] |= 1
    put(tmp_path, {"x.zip": bytes(whole)})
    found = {r.file_name: (r.problem, r.problem_detail) for r in read(tmp_path / "x.zip")}
    assert {name: problem for name, (problem, _) in found.items()} == {
        "secret.jpg": "unreadable", "link.jpg": "unreadable", "in.zip": "unreadable", "in.tar.gz": "unreadable",
        "film.mp4": "video", "good.jpg": None,
    }  # fmt: skip
    assert "encrypted" in str(found["secret.jpg"][1])
    assert "archive inside a ZIP" in str(found["in.zip"][1])
    put(tmp_path, {"x.zip": packed([("a.jpg", b"a" * 1000)], zipfile.ZIP_LZMA)})
    (record,) = read(tmp_path / "x.zip")
    assert record.problem_detail == "compressed by lzma; pack the ZIP with Deflate"


def test_bombs_are_not_decompressed(tmp_path: Path) -> None:
    bomb = bytearray(packed([("a.jpg", bytes(10**6)), ("b.jpg", bytes(10**6)), ("c.jpg", b"fine")]))
    second, directory = bomb.index(b"PK\3\4", 10), bomb.index(b"PK\1\2")
    entry = bomb.index(b"PK\1\2", directory + 10)
    # The second member is the first one again, and claims a gigabyte.
    bomb[entry + 24 : entry + 28] = struct.pack("<I", 2**30)
    put(tmp_path, {"x.zip": bytes(bomb)})
    claims = {r.file_name: r.problem_detail for r in read(tmp_path / "x.zip")}
    assert "claims 1,073,741,824 bytes" in str(claims["b.jpg"])
    bomb[entry + 24 : entry + 28] = struct.pack("<I", 10**6)
    bomb[entry + 42 : entry + 46] = struct.pack("<I", 0)
    put(tmp_path, {"x.zip": bytes(bomb)})
    assert second
    problems = [r.problem_detail for r in read(tmp_path / "x.zip")]
    assert problems == [None, "overlaps another member of the ZIP", None]


def test_a_member_that_lies_about_its_size_is_rejected(tmp_path: Path) -> None:
    data = bytearray(packed([("a.jpg", os.urandom(1000))]))
    entry = data.index(b"PK\1\2")
    for claimed, reason in ((900, "corrupt"), (1100, "truncated")):
        data[entry + 24 : entry + 28] = struct.pack("<I", claimed)
        put(tmp_path, {"x.zip": bytes(data)})
        with pytest.raises(Rejected, match=reason):
            read_content(read(tmp_path / "x.zip")[0].source_uri, 10_000)
    damaged = bytearray(packed([("a.jpg", bytes(range(256)) * 8)]))
    damaged[40:60] = b"\xff" * 20
    put(tmp_path, {"x.zip": bytes(damaged)})
    with pytest.raises(Rejected, match=r"corrupt.*cannot be decompressed"):
        read_content(read(tmp_path / "x.zip")[0].source_uri, 10_000)


@pytest.mark.parametrize("data", [b"", b"PK\3\4", packed(IMAGES)[:-30], b"PK\5\6" + bytes(18), os.urandom(70_000)])
def test_a_broken_zip_is_one_row_or_refused_as_a_source(data: bytes, tmp_path: Path) -> None:
    put(tmp_path / "in", {"x.zip": data, "1.jpg": b"x"})
    with pytest.raises(SourceError, match=r"x\.zip: (not a ZIP of files|the ZIP contains no files)"):
        read(tmp_path / "in" / "x.zip")
    problems = {r.file_name: r.problem for r in read(tmp_path / "in")}
    assert problems in ({"1.jpg": None, "x.zip": "corrupt"}, {"1.jpg": None})


def test_a_directory_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "MAX_DIRECTORY_BYTES", 70_000)
    put(tmp_path, {"x.zip": packed([(f"{i:050d}.jpg", b"x") for i in range(1000)])})
    with pytest.raises(SourceError, match="a directory of more than 70,000 bytes"):
        read(tmp_path / "x.zip")


def test_the_download_of_4cat_is_joined_with_its_list(tmp_path: Path) -> None:
    listed = {
        "https://cdn.example/1.jpg?oe=1": {"filename": "1.jpg", "success": True, "post_ids": ["A"]},
        "https://cdn.example/2.jpg": {"filename": "2.jpg", "success": True, "post_ids": ["B", "C"]},
        "https://cdn.example/3.jpg": {"filename": None, "success": False, "post_ids": ["D"]},
        "https://cdn.example/4.jpg": "what?",
    }  # fmt: skip
    files = [("1.jpg", b"1"), ("2.jpg", b"2"), ("9.jpg", b"9"), (".metadata.json", json.dumps(listed).encode())]
    put(tmp_path, {"x.zip": packed(files)})
    found = read(tmp_path / "x.zip")
    assert [(r.file_name, r.shortcode, r.source_url, r.problem) for r in found] == [
        ("1.jpg", "A", "https://cdn.example/1.jpg?oe=1", None), ("2.jpg", "B", "https://cdn.example/2.jpg", None),
        ("9.jpg", None, None, None), ("", "D", "https://cdn.example/3.jpg", "missing_file"),
    ]  # fmt: skip
    assert found[1].extra == {"post_ids": ["B", "C"]}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 10_000])
def test_a_broken_list_of_4cat_costs_no_image(content: bytes, tmp_path: Path) -> None:
    put(tmp_path, {"x.zip": packed([("1.jpg", b"1"), (".metadata.json", content)])})
    assert [(r.file_name, r.problem) for r in read(tmp_path / "x.zip")] == [("1.jpg", None)]


def test_a_zip_of_tables_is_read_as_tables(tmp_path: Path) -> None:
    table = b"url,caption\nhttps://a.example/1.jpg,one\n"
    put(
        tmp_path,
        {"x.zip": packed([("readme.md", b"x"), ("a.csv", table), ("b.csv", table.replace(b"1.jpg", b"2.jpg"))])},
    )
    assert [r.source_uri for r in read(tmp_path / "x.zip")] == [f"https://a.example/{i}.jpg" for i in (1, 2)]


def test_the_address_of_a_member_can_be_parsed() -> None:
    for address in (
        MemberAddress("/a#b/é.zip", "c#d&e.jpg", 3, 4, zipped=2),
        MemberAddress("/a.zip", "x", 0, 0, zipped=0),
    ):
        assert parse_member(address.uri) == address


def test_a_large_zip_with_zip64_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, archive.open("1.jpg", "w", force_zip64=True) as member:
        member.write(b"content")
    assert read_content(read(tmp_path / "x.zip")[0].source_uri, 10) == b"content"


@pytest.mark.fuzz
@fuzzed(300)
@given(st.data())
def test_a_zip_with_any_change_has_members_or_is_broken(data: st.DataObject) -> None:
    content = bytearray(packed([(f"{i}.jpg", b"x" * 100) for i in range(3)] + [("2.json", b"{}"), ("in.tar", tar([]))]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, len(content) - 1), st.integers(len(content) - 300, len(content) - 1)))
        piece = data.draw(
            st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, b"\xff" * 8, bytes(4)]))
        )
        content[at : at + len(piece)] = piece
    with suppress(BrokenZip):
        for member in list_members(io.BytesIO(content)):
            member.name.encode("utf-8", "surrogateescape")
            assert member.offset >= 0
            if member.problem is None and member.size < 10**6:
                address = MemberAddress("x", member.name, member.offset, member.size, zipped=member.zipped)
                with suppress(Rejected, StorageError):
                    read_from(address, bytes(content))


def read_from(address: MemberAddress, content: bytes) -> Any:
    from pipeline.ingest.sources.archives.members import read_member

    return read_member(address, 10**6, lambda _: io.BytesIO(content))
