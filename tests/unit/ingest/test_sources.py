from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.ingest import instagram
from pipeline.ingest.fetch import fetch
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources import count_candidates, read_records
from pipeline.records import CrawlRecord
from tests.crawl_files import node, write_metadata


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content of " + name.encode())


def names(folder: Path) -> list[str]:
    return [record.file_name for record in read_records(str(folder))]


def only(folder: Path) -> CrawlRecord:
    (record,) = read_records(str(folder))
    return record


def test_files_come_by_name_then_subfolders_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.jpg", "b/1.jpg", "z.jpg", "a/x/deep.jpg", "a/3.jpg", "0.txt")
    assert names(tmp_path) == ["0.txt", "z.jpg", "3.jpg", "deep.jpg", "1.jpg", "2.jpg"]


def test_hidden_partial_and_special_files_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "kept.jpg", ".hidden.jpg", ".cache/x.jpg", "loading.jpg.part")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "elsewhere").symlink_to(tmp_path.parent, target_is_directory=True)
    assert names(tmp_path) == ["kept.jpg"]


def test_links_to_files_are_followed_and_broken_ones_are_missing(tmp_path: Path) -> None:
    touch(tmp_path, "real.jpg")
    (tmp_path / "link.jpg").symlink_to("real.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "stale.jpg").symlink_to("gone.jpg")
    problems = {r.file_name: r.problem for r in read_records(str(tmp_path))}
    assert problems == {"real.jpg": None, "link.jpg": None, "loop.jpg": "unreadable", "stale.jpg": "missing_file"}


def test_a_dump_joins_files_to_posts(tmp_path: Path) -> None:
    touch(tmp_path, "1_n.jpg")
    more = {"edge_media_preview_like": {"count": 3}, "owner": {"id": "9"}, "location": {"name": "Roma"}}
    write_metadata(tmp_path, [node("1_n.jpg", tags=["trevi", "roma"], **more)])
    record = only(tmp_path)
    assert record.source_uri == str(tmp_path / "1_n.jpg")
    assert record.shortcode == "code of 1_n.jpg"
    assert record.caption == "caption of 1_n.jpg #Trevi"
    assert record.taken_at == datetime(2020, 9, 13, 12, 26, 40, tzinfo=UTC)
    assert record.hashtags == ["trevi", "roma"]
    assert record.source_url == "https://cdn.example/a/1_n.jpg"
    assert record.extra == {"likes": 3, "owner_id": "9", "location": "Roma"}
    assert record.problem is None


def test_hashtags_come_from_the_caption_where_the_node_has_none(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    write_metadata(tmp_path, [node("1.jpg")])
    assert only(tmp_path).hashtags == ["trevi"]


def test_files_and_posts_that_lack_each_other_are_records_too(tmp_path: Path) -> None:
    touch(tmp_path, "stray.jpg")
    write_metadata(tmp_path, [node("gone.jpg")])
    stray, gone = read_records(str(tmp_path))
    assert (stray.file_name, stray.caption, stray.problem) == ("stray.jpg", None, None)
    assert (gone.source_uri, gone.problem) == (str(tmp_path / "gone.jpg"), "missing_file")
    assert gone.caption == "caption of gone.jpg #Trevi"


def test_a_repeated_post_is_used_once(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    moved = node("1.jpg", urls=["https://cdn.example/other.jpg"], display_url=None)
    write_metadata(tmp_path, [node("1.jpg"), node("1.jpg"), moved])
    assert names(tmp_path) == ["1.jpg"]


def test_every_file_of_a_carousel_belongs_to_its_post(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    urls = [f"https://cdn.example/{i}.jpg?x" for i in (1, 2, 3)]
    write_metadata(tmp_path, [node("1.jpg", urls=urls, display_url="https://cdn.example/1.jpg")])
    records = list(read_records(str(tmp_path)))
    assert [(r.file_name, r.problem) for r in records] == [("1.jpg", None), ("2.jpg", None), ("3.jpg", "missing_file")]
    assert {r.shortcode for r in records} == {"code of 1.jpg"}


def test_videos_are_known_by_name_and_by_post(tmp_path: Path) -> None:
    touch(tmp_path, "1.MP4", "2.bin", "3.jpg")
    write_metadata(tmp_path, [node("2.bin", is_video=True), node("3.jpg", is_video=True)])
    assert [r.problem for r in read_records(str(tmp_path))] == ["video", "video", None]


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"GraphImages": ' + b"9" * 5000 + b"}", b""],
    ids=["cut", "bytes", "deep", "huge number", "empty"],
)
def test_broken_metadata_is_a_file_like_any_other(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path, "1.jpg")
    (tmp_path / "tag.json").write_bytes(content)
    assert names(tmp_path) == ["1.jpg", "tag.json"]
    assert f"{tmp_path / 'tag.json'} is not used as metadata" in capsys.readouterr().out


def test_metadata_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "1.jpg")
    write_metadata(tmp_path, [node("1.jpg")])
    monkeypatch.setattr(instagram, "MAX_METADATA_BYTES", 10)
    assert [r.caption for r in read_records(str(tmp_path))] == [None, None]


def test_other_json_is_a_file_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "other.json").write_text('{"GraphImages": 7}')
    assert names(tmp_path) == ["list.json", "other.json"]


@pytest.mark.parametrize("wrong", [None, 7, -1e30, float("nan"), "text", [], {}, [[]], {"edges": 3}, True])
def test_values_of_any_type_are_tolerated(wrong: object, tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    keys = ["id", "shortcode", "urls", "tags", "taken_at_timestamp", "edge_media_to_caption", "owner", "is_video"]
    keys += ["edge_media_preview_like", "location"]
    nodes = [node("1.jpg", **{key: wrong}) for key in keys]
    write_metadata(tmp_path, [wrong, *nodes, node("1.jpg", display_url=wrong, urls=[wrong])])
    assert [(r.file_name, r.problem) for r in read_records(str(tmp_path))] == [("1.jpg", None)]


def test_a_post_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    write_metadata(tmp_path, [node("x", urls=["https://a/..", "https://a/.", "https://a/", "..", "/etc/passwd"])])
    uris = {Path(r.source_uri) for r in read_records(str(tmp_path))}
    assert {uri.parent for uri in uris} == {tmp_path}
    assert tmp_path / ".." not in uris


def test_stray_bytes_and_surrogates_become_storable_and_stay_openable(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff%.jpg")).write_bytes(b"pixels")
    touch(tmp_path, "b.jpg")
    (tmp_path / "tag.json").write_text(
        json.dumps({"GraphImages": [node("b.jpg", edge_media_to_caption={"edges": [{"node": {"text": "\ud800"}}]})]})
    )
    stray, joined = read_records(str(tmp_path))
    assert stray.file_name == "a\\udcff%.jpg"
    assert fetch(stray.source_uri, 100) == b"pixels"
    assert joined.caption == "\\ud800"
    for record in (stray, joined):
        record.source_uri.encode()
        record.fingerprint.encode()


def test_names_with_anything_in_them_stay_openable(tmp_path: Path) -> None:
    touch(tmp_path, "a b%20#?\n.jpg", "file:é☃.jpg")
    assert [fetch(r.source_uri, 100)[:10] for r in read_records(str(tmp_path))] == [b"content of"] * 2


def test_the_fingerprint_follows_name_and_size_but_not_the_place(tmp_path: Path) -> None:
    def fingerprint(place: str, name: str, content: bytes) -> str:
        path = tmp_path / place / "sub" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return only(tmp_path / place).fingerprint

    here = fingerprint("here", "1.jpg", b"four")
    assert fingerprint("there", "1.jpg", b"five") == here
    assert fingerprint("longer", "1.jpg", b"sixteen") != here
    assert fingerprint("renamed", "2.jpg", b"four") != here


def test_candidates_are_counted_no_further_than_asked(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.mp4")
    assert count_candidates(str(tmp_path), 2) == 2
    assert count_candidates(str(tmp_path), 10) == 3


def test_an_absent_source_a_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "file.jpg", "empty/.hidden")
    for source, message in [("none", "no such folder"), ("file.jpg", "found a file"), ("empty", "holds no file")]:
        with pytest.raises(SourceError, match=message):
            list(read_records(str(tmp_path / source)))


def test_fetch_refuses_what_is_not_a_small_regular_file(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    os.mkfifo(tmp_path / "pipe")
    refused = {"1.jpg": "too_many_bytes", "none.jpg": "missing_file", "pipe": "unreadable", ".": "unreadable"}
    for name, reason in refused.items():
        with pytest.raises(Rejected) as caught:
            fetch(str(tmp_path / name), max_bytes=5)
        assert caught.value.reason == reason
