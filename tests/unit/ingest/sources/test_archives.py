from __future__ import annotations

import gzip
import io
import os
import tarfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError, StorageError
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.archives import members as member_reading
from pipeline.ingest.sources.archives import samples
from pipeline.ingest.sources.archives.members import MemberAddress, parse_member
from pipeline.ingest.sources.archives.tars import BrokenTar, iter_members
from pipeline.ingest.sources.content import file_uri, read_content
from pipeline.ingest.sources.detect import read_records
from pipeline.records import CrawlRecord
from tests.support.dump_files import put, tar
from tests.support.fuzzing import fuzzed

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
IMAGES = [(f"photos/{i}.jpg", bytes([i]) * (700 * i + 1)) for i in range(6)]


def read(path: Path) -> list[CrawlRecord]:
    return list(read_records(str(path)))


@pytest.mark.parametrize(("name", "mode"), [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tgz", "w:gz"), ("x.tar", "w:gz")])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_records_that_are_read_in_place(name: str, mode: str, form: int, tmp_path: Path) -> None:
    put(tmp_path, {name: tar(IMAGES, mode, format=form)})
    for source in (tmp_path / name, tmp_path):
        found = read(source)
        assert [r.file_name for r in found] == [f"{i}.jpg" for i in range(6)]
        for order in (found, found[::-1]):
            for record in order:
                assert read_content(record.source_uri, 10_000) == dict(IMAGES)[f"photos/{record.file_name}"]
        assert found[0].source_uri.startswith(f"{tmp_path / name}#member=photos/0.jpg&offset=")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_names_of_any_bytes(form: int, tmp_path: Path) -> None:
    names = ["d/" * 200 + "long.jpg", "é☃#%&.jpg", os.fsdecode(b"\xff\xfe.jpg"), "new\nline.jpg"]
    put(tmp_path, {"x.tar": tar([(n, n.encode("utf-8", "surrogateescape")) for n in names], format=form)})
    found = read(tmp_path / "x.tar")
    assert [r.file_name for r in found] == ["long.jpg", "é☃#%&.jpg", "\\udcff\\udcfe.jpg", "new\nline.jpg"]
    for name, record in zip(names, found, strict=True):
        assert read_content(record.source_uri, 10_000) == name.encode("utf-8", "surrogateescape")
        record.source_uri.encode()
        record.fingerprint.encode()
        address = parse_member(record.source_uri)
        assert address is not None
        assert address.name == name


def hostile() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as writer:

        def add(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **values: Any) -> None:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(data)
            for key, value in values.items():
                setattr(member, key, value)
            writer.addfile(member, io.BytesIO(data))

        add("../../escape.jpg", data=b"outside?")
        add("/etc/absolute.jpg", data=b"root?")
        add("folder", tarfile.DIRTYPE)
        add("soft.jpg", tarfile.SYMTYPE, linkname="/etc/passwd")
        add("hard.jpg", tarfile.LNKTYPE, linkname="../../escape.jpg")
        add("null.jpg", tarfile.CHRTYPE, devmajor=1, devminor=3)
        add("disk.jpg", tarfile.BLKTYPE)
        add("pipe.jpg", tarfile.FIFOTYPE)
        add(".hidden.jpg", data=b"x")
        add("._fork.jpg", data=b"x")
        add("film.mp4", data=b"x")
        add("last.jpg", data=b"good")
    return buffer.getvalue()


@pytest.mark.parametrize("packed", [False, True])
def test_hostile_members_are_never_extracted_or_followed(packed: bool, tmp_path: Path) -> None:
    put(tmp_path / "in", {"x.tar": gzip.compress(hostile()) if packed else hostile()})
    found = {r.file_name: r for r in read(tmp_path / "in" / "x.tar")}
    unreadable = dict.fromkeys(["soft.jpg", "hard.jpg", "null.jpg", "disk.jpg", "pipe.jpg"], "unreadable")
    good = {"escape.jpg": None, "absolute.jpg": None, "last.jpg": None}
    assert {n: r.problem for n, r in found.items()} == {**unreadable, **good, "film.mp4": "video"}
    assert [read_content(found[n].source_uri, 100) for n in good] == [b"outside?", b"root?", b"good"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "x.tar"]


def header_of_size(size: int) -> bytes:
    """A header whose size is stored in the binary notation of GNU tar."""
    header = bytearray(tarfile.TarInfo("n.jpg").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def pax_header_of_size(size: int) -> bytes:
    member = tarfile.TarInfo("n.jpg")
    member.pax_headers = {"size": str(size)}
    return member.tobuf(tarfile.PAX_FORMAT)


def test_sparse_members_and_impossible_headers(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("huge.jpg")
    huge.size = 2**40
    header = huge.tobuf(tarfile.GNU_FORMAT)
    pax = tarfile.TarInfo("x")
    pax.type, pax.size = tarfile.XHDTYPE, 2**33
    negative = bytearray(tarfile.TarInfo("n.jpg").tobuf(tarfile.GNU_FORMAT))
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b" " * 8
    negative[148:156] = b"%06o\0 " % sum(negative)
    sizes = [header_of_size(size) for size in (2**43, 2**62, 2**63 - 1, 2**63, 2**64, 2**80)]
    pax_sizes = [pax_header_of_size(size) for size in (10**13, 2**62, 10**18 - 1)]
    for bad in (header, pax.tobuf(tarfile.GNU_FORMAT), bytes(negative), b"\xff" * 512, b"x", *sizes, *pax_sizes):
        put(tmp_path, {"x.tar": tar(IMAGES[:2])[: 512 * 5] + bad})
        found = read(tmp_path / "x.tar")
        assert [r.problem for r in found] == [None, None, "truncated"]
        put(tmp_path, {"x.tar": bad})
        with pytest.raises(SourceError, match=r"x\.tar: not a tar of files"):
            read(tmp_path / "x.tar")


@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_that_is_cut_off_gives_its_complete_members_and_a_rejected_record(packed: bool, tmp_path: Path) -> None:
    images = [(f"{i}.jpg", os.urandom(5_000)) for i in range(4)]
    data = tar(images, "w:gz" if packed else "w")
    put(tmp_path, {"x.tar": data[:12_000]})
    found = read(tmp_path)
    assert [(r.file_name, r.problem) for r in found] == [("0.jpg", None), ("1.jpg", None), ("x.tar", "truncated")]
    assert [read_content(r.source_uri, 10_000) for r in found[:2]] == [data for _, data in images[:2]]
    assert found[2].problem_detail


def test_a_file_that_is_not_a_tar_is_a_rejected_record_in_a_folder_and_refused_as_a_source(tmp_path: Path) -> None:
    put(tmp_path, {"a.jpg": b"x", "x.tar": b"no tar", "y.tar": b"", "z.tar": tar([])})
    assert {r.file_name: r.problem for r in read(tmp_path)} == {"a.jpg": None, "x.tar": "corrupt", "y.tar": "corrupt"}
    for name in ("x.tar", "y.tar", "z.tar"):
        with pytest.raises(SourceError, match="not a tar of files"):
            read(tmp_path / name)


def test_metadata_in_a_tar_belongs_to_its_image(tmp_path: Path) -> None:
    files = [
        ("a.jpg", b"1"), ("a.json", b'{"url": "https://a.example/1", "caption": "one #x", "n": 1}'),
        ("b.jpg", b"2"), ("b.json", b"{"),
        ("c.json", b'{"caption": "before its image"}'), ("c.jpg", b"3"),
        ("d.jpg", b"4"), ("d.txt", b"text #y"),
        ("e.jpg", b"5"), ("e.jpg.json", b'{"description": "gallery"}'),
        ("readme.txt", b"alone"),
        ("f.1.jpg", b"6"), ("f.2.jpg", b"7"),
    ]  # fmt: skip
    put(tmp_path, {"x.tar": tar(files)})
    found = read(tmp_path / "x.tar")
    assert [(r.file_name, r.caption, r.problem) for r in found] == [
        ("a.jpg", "one #x", None), ("b.jpg", None, None), ("b.json", None, "broken_metadata"),
        ("c.jpg", "before its image", None), ("d.jpg", "text #y", None), ("e.jpg", "gallery", None),
        ("f.1.jpg", None, None), ("f.2.jpg", None, None), ("readme.txt", None, None),
    ]  # fmt: skip
    assert (found[0].source_url, found[0].extra, found[0].hashtags) == ("https://a.example/1", {"n": 1}, ["x"])


def captions(path: Path) -> dict[str, str | None]:
    return {r.file_name: r.caption for r in read(path)}


def caption(text: str) -> bytes:
    return b'{"caption": "%s"}' % text.encode()


def test_the_exact_stem_wins_over_the_name_up_to_the_first_dot(tmp_path: Path) -> None:
    files = [(f"St. Peter's {i}.{suffix}", caption(str(i))) for i in (1, 2, 3) for suffix in ("jpg", "json")]
    put(tmp_path, {"x.tar": tar([*files, ("St. Peter's 4.jpg", b"x")])})
    expected = {f"St. Peter's {i}.jpg": str(i) for i in (1, 2, 3)}
    assert captions(tmp_path / "x.tar") == {**expected, "St. Peter's 4.jpg": None}


def test_one_file_of_metadata_describes_all_images_of_a_sample(tmp_path: Path) -> None:
    files = [("7.front.jpg", b"1"), ("7.back.jpg", b"2"), ("7.json", caption("both")), ("7.back.txt", b"back only")]
    put(tmp_path, {"x.tar": tar(files)})
    assert captions(tmp_path / "x.tar") == {"7.front.jpg": "both", "7.back.jpg": "back only"}


@pytest.mark.parametrize("order", [1, -1])
def test_an_unsorted_tar_keeps_its_metadata(order: int, tmp_path: Path) -> None:
    images = [(f"in/{i}.x.jpg", bytes([i])) for i in range(100)]
    metadata = [(f"in/{i}.x.json", caption(f"text {i}")) for i in range(100)]
    put(tmp_path, {"x.tar": tar([*images, *metadata][::order])})
    found = captions(tmp_path / "x.tar")
    assert found == {f"{i}.x.jpg": f"text {i}" for i in range(100)}
    assert list(found) == [f"{i}.x.jpg" for i in range(100)][::order]


def test_images_do_not_wait_for_metadata_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_WAITING", 5)
    monkeypatch.setattr(samples, "MAX_WAITING_BYTES", 100)
    images = [(f"{i}.jpg", b"x") for i in range(10)]
    texts = [(f"{i}.txt", b"x" * 40) for i in [9, *range(20, 40), 8]]
    put(tmp_path, {"x.tar": tar([*images, *texts])})
    found = captions(tmp_path / "x.tar")
    assert [found[f"{i}.jpg"] for i in (0, 8, 9)] == [None, "x" * 40, "x" * 40]
    assert set(found) == {f"{i}.jpg" for i in range(10)} | {f"{i}.txt" for i in range(20, 40)}


def test_only_the_bytes_of_the_member_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, {"x.tar": tar(IMAGES)})
    record = read(tmp_path / "x.tar")[3]
    read_bytes = 0
    read_up_to = member_reading._read_up_to

    def counted(stream: Any, size: int) -> bytes:
        nonlocal read_bytes
        read_bytes += size
        return read_up_to(stream, size)

    monkeypatch.setattr(member_reading, "_read_up_to", counted)
    assert read_content(record.source_uri, 10_000) == IMAGES[3][1]
    assert read_bytes == len(IMAGES[3][1])
    with pytest.raises(Rejected) as caught:
        read_content(record.source_uri, 100)
    assert caught.value.reason == "too_many_bytes"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_that_shrank_or_was_deleted_is_a_temporary_fault(mode: str, tmp_path: Path) -> None:
    put(tmp_path, {f"{mode[-1]}.tar": tar(IMAGES, mode)})
    (path,) = tmp_path.iterdir()
    record = read(path)[-1]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StorageError, match="has changed since it was listed"):
        read_content(record.source_uri, 10_000)
    path.unlink()
    with pytest.raises(StorageError, match="No such file"):
        read_content(record.source_uri, 10_000)


def test_threads_share_a_compressed_tar(tmp_path: Path) -> None:
    images = [(f"{i}.jpg", os.urandom(2_000)) for i in range(200)]
    put(tmp_path, {"x.tar.gz": tar(images, "w:gz")})
    found = read(tmp_path / "x.tar.gz")
    different: list[str] = []

    def work(start: int) -> None:
        for i in range(start, len(found), 4):
            if read_content(found[i].source_uri, 10_000) != images[i][1]:
                different.append(found[i].file_name)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not different
    assert len(member_reading._readers) <= member_reading.MAX_READERS


def test_a_path_that_looks_like_a_member_address_is_opened_as_a_path(tmp_path: Path) -> None:
    put(tmp_path, {"x.tar": tar(IMAGES)})
    path = tmp_path / "x.tar#member=y&offset=0&size=3"
    path.write_bytes(b"other content")
    assert read_content(file_uri(str(path)), 100) == b"other content"
    address = MemberAddress("/a#b/é.tar", "c#d&e.jpg", 3, 4, True)
    assert parse_member(address.uri) == address


@pytest.mark.fuzz
@fuzzed(300)
@given(st.data())
def test_a_tar_with_any_change_gives_records_or_is_no_tar(data: st.DataObject) -> None:
    content = bytearray(tar([(f"{i}.jpg", b"x" * 100) for i in range(3)] + [("2.json", b"{}")], format=FORMATS[2]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(
            st.one_of(st.binary(min_size=1, max_size=12), st.sampled_from([b"\x80" + b"\xff" * 11, b"7" * 11]))
        )
        content[at : at + len(piece)] = piece
    for block in range(0, len(content) - 511, 512):  # correct checksums, so that headers are not refused for them
        content[block + 148 : block + 156] = b" " * 8
        content[block + 148 : block + 156] = b"%06o\0 " % sum(content[block : block + 512])
    with suppress(BrokenTar):
        for member in iter_members(io.BytesIO(content), lambda name, size: size < 1000):
            assert 0 <= member.offset <= member.offset + member.size <= len(content)
