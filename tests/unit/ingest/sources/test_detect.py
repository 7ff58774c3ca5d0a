from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, SourceError, StorageError
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.content import read_content
from pipeline.ingest.sources.detect import count_candidates, read_records
from pipeline.ingest.sources.scrapers import instagram
from pipeline.ingest.sources.tables import json_arrays
from pipeline.ingest.sources.tables.table_records import TableOptions
from pipeline.ingest.stage import check_workspace_location
from pipeline.records import CrawlRecord
from pipeline.storage import LocalStorage
from tests.support.crawl_files import node, write_metadata


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
    touch(tmp_path, "kept.jpg", ".hidden.jpg", ".cache/x.jpg", "loading.jpg.part", "loading.jpg.PART")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert names(tmp_path) == ["kept.jpg"]


def test_links_to_files_are_followed_and_broken_links_are_missing_files(tmp_path: Path) -> None:
    touch(tmp_path, "real.jpg")
    (tmp_path / "link.jpg").symlink_to("real.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "stale.jpg").symlink_to("gone.jpg")
    problems = {r.file_name: r.problem for r in read_records(str(tmp_path))}
    assert problems == {"real.jpg": None, "link.jpg": None, "loop.jpg": "unreadable", "stale.jpg": "missing_file"}


def test_links_out_of_the_source_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "private.jpg", "crawl/inside.jpg", "crawl/sub/x.jpg")
    write_metadata(tmp_path, [node("inside.jpg")])
    crawl = tmp_path / "crawl"
    (crawl / "absolute.jpg").symlink_to(tmp_path / "private.jpg")
    (crawl / "sub" / "relative.jpg").symlink_to("../../private.jpg")
    (crawl / "sub" / "within.jpg").symlink_to("../inside.jpg")
    (crawl / "tag.json").symlink_to(tmp_path / "tag.json")
    (tmp_path / "alias").symlink_to(crawl, target_is_directory=True)
    for source in (crawl, tmp_path / "alias"):
        records = list(read_records(str(source)))
        assert {r.file_name: r.problem for r in records} == {
            "absolute.jpg": "outside_source", "inside.jpg": None, "tag.json": "outside_source",
            "relative.jpg": "outside_source", "within.jpg": None, "x.jpg": None,
        }  # fmt: skip
        assert {r.caption for r in records} == {None}


def test_a_folder_is_listed_once_whatever_links_lead_to_it(tmp_path: Path) -> None:
    touch(tmp_path, "other/1.jpg", "crawl/real/2.jpg", "crawl/.hidden/3.jpg")
    crawl = tmp_path / "crawl"
    (crawl / "again").symlink_to("real", target_is_directory=True)
    (crawl / "real" / "up").symlink_to("..", target_is_directory=True)
    (crawl / "out").symlink_to(tmp_path / "other", target_is_directory=True)
    (crawl / "hidden").symlink_to(".hidden", target_is_directory=True)
    records = {r.file_name: r for r in read_records(str(crawl))}
    assert {name: r.problem for name, r in records.items()} == {
        "2.jpg": None, "out": "outside_source", "hidden": "outside_source",
    }  # fmt: skip
    assert "give this folder as a source of its own" in str(records["out"].problem_detail)


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


def test_files_without_a_post_and_posts_without_a_file_are_records(tmp_path: Path) -> None:
    touch(tmp_path, "stray.jpg")
    write_metadata(tmp_path, [node("gone.jpg")])
    stray, gone = read_records(str(tmp_path))
    assert (stray.file_name, stray.caption, stray.problem) == ("stray.jpg", None, None)
    assert (gone.source_uri, gone.problem) == (str(tmp_path / "gone.jpg"), "missing_file")
    assert gone.caption == "caption of gone.jpg #Trevi"


def test_posts_that_name_no_file_are_missing_files(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    bare: dict[str, Any] = {"display_url": None, "urls": []}
    nodes = [node("1.jpg", **bare), node("1.jpg"), node("2", **bare), node("2", **bare), {}, {}]
    write_metadata(tmp_path, nodes)
    records = [(r.file_name, r.shortcode, r.problem) for r in read_records(str(tmp_path))]
    nameless = [("", "code of 2", "missing_file"), ("", None, "missing_file"), ("", None, "missing_file")]
    assert records == [("1.jpg", "code of 1.jpg", None), *nameless]


def test_a_repeated_post_is_used_once(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    other_node = node("1.jpg", urls=["https://cdn.example/other.jpg"], display_url=None)
    write_metadata(tmp_path, [node("1.jpg"), node("1.jpg"), other_node])
    assert names(tmp_path) == ["1.jpg"]


def test_every_file_of_a_carousel_belongs_to_its_post(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    urls = [f"https://cdn.example/{i}.jpg?x" for i in (1, 2, 3)]
    write_metadata(tmp_path, [node("1.jpg", urls=urls, display_url="https://cdn.example/1.jpg")])
    records = list(read_records(str(tmp_path)))
    assert [(r.file_name, r.problem) for r in records] == [("1.jpg", None), ("2.jpg", None), ("3.jpg", "missing_file")]
    assert {r.shortcode for r in records} == {"code of 1.jpg"}


def test_videos_are_recognised_by_name_and_by_post(tmp_path: Path) -> None:
    touch(tmp_path, "1.MP4", "2.bin", "3.jpg")
    write_metadata(tmp_path, [node("2.bin", is_video=True), node("3.jpg", is_video=True)])
    assert [r.problem for r in read_records(str(tmp_path))] == ["video", "video", None]


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe\x00", b"[" * 100_000, b""],
    ids=["cut", "bytes", "deep", "empty"],
)
def test_broken_metadata_is_a_record_like_any_other_file(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path, "1.jpg")
    (tmp_path / "tag.json").write_bytes(content)
    assert names(tmp_path) == ["1.jpg", "tag.json"]
    assert f"{tmp_path / 'tag.json'} is not used as metadata" in capsys.readouterr().out


def test_the_posts_before_broken_metadata_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instagram, "MAX_WHOLE_BYTES", 10)
    touch(tmp_path, "1.jpg", "2.jpg")
    write_metadata(tmp_path, [node("1.jpg"), node("2.jpg")])
    whole = (tmp_path / "tag.json").read_bytes()
    (tmp_path / "tag.json").write_bytes(whole[:-20])
    captions = {r.file_name: r.caption for r in read_records(str(tmp_path))}
    assert captions == {"1.jpg": "caption of 1.jpg #Trevi", "2.jpg": None}
    assert f"{tmp_path / 'tag.json'} is not used as metadata: after 1 posts" in capsys.readouterr().out
    (tmp_path / "tag.json").write_bytes(whole[:30])
    assert names(tmp_path) == ["1.jpg", "2.jpg", "tag.json"]


def test_a_very_long_number_affects_no_other_value(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    likes = {"edge_media_preview_like": {"count": 777}}
    write_metadata(tmp_path, [node("1.jpg", taken_at_timestamp=777, **likes), node("2.jpg")])
    text = (tmp_path / "tag.json").read_text()
    (tmp_path / "tag.json").write_text(text.replace("777", "9" * 5000))
    first, second = read_records(str(tmp_path))
    assert (first.caption, first.taken_at, first.extra) == ("caption of 1.jpg #Trevi", None, {})
    assert second.caption == "caption of 2.jpg #Trevi"


def test_metadata_of_any_size_is_read_post_by_post(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    monkeypatch.setattr(instagram, "MAX_WHOLE_BYTES", 10)
    monkeypatch.setattr(json_arrays, "MAX_OBJECT_BYTES", 100_000)
    write_metadata(tmp_path, [*(node(f"gone-{i}.jpg") for i in range(2_000)), node("1.jpg")])
    text = (tmp_path / "tag.json").read_text()
    (tmp_path / "tag.json").write_text('{"GraphProfileInfo": {"biography": "%s"}, ' % ("x" * 20_000) + text[1:])
    assert (tmp_path / "tag.json").stat().st_size > 5 * json_arrays.MAX_OBJECT_BYTES
    assert next(r.caption for r in read_records(str(tmp_path)) if r.file_name == "1.jpg")
    write_metadata(tmp_path, [node("1.jpg"), node("2.jpg", bomb="x" * 400_000)])
    captions = {r.file_name: r.caption for r in read_records(str(tmp_path))}
    assert captions == {"1.jpg": "caption of 1.jpg #Trevi", "2.jpg": None}


def test_json_without_posts_is_a_record_like_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "other.json").write_text('{"GraphImages": 7}')
    assert names(tmp_path) == ["list.json", "other.json"]


@pytest.mark.parametrize("value", [None, 7, -1e30, float("nan"), "text", [], {}, [[]], {"edges": 3}, True])
def test_values_of_any_type_are_tolerated(value: object, tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    keys = ["id", "shortcode", "urls", "tags", "taken_at_timestamp", "edge_media_to_caption", "owner", "is_video"]
    keys += ["edge_media_preview_like", "location"]
    nodes = [node("1.jpg", **{key: value}) for key in keys]
    write_metadata(tmp_path, [value, *nodes, node("1.jpg", display_url=value, urls=[value])])
    first, *rest = read_records(str(tmp_path))
    assert (first.file_name, first.problem) == ("1.jpg", None)
    assert [r.problem for r in rest] == ["missing_file"] * isinstance(value, dict)


def test_a_post_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    write_metadata(tmp_path, [node("x", urls=["https://a/..", "https://a/.", "https://a/", "..", "/etc/passwd"])])
    uris = {Path(r.source_uri) for r in read_records(str(tmp_path))}
    assert {uri.parent for uri in uris} == {tmp_path}
    assert tmp_path / ".." not in uris


def test_names_with_invalid_utf8_can_be_stored_and_opened(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff%.jpg")).write_bytes(b"pixels")
    touch(tmp_path, "b.jpg")
    (tmp_path / "tag.json").write_text(
        json.dumps({"GraphImages": [node("b.jpg", edge_media_to_caption={"edges": [{"node": {"text": "\ud800"}}]})]})
    )
    stray, joined = read_records(str(tmp_path))
    assert stray.file_name == "a\\udcff%.jpg"
    assert read_content(stray.source_uri, 100) == b"pixels"
    assert joined.caption == "\\ud800"
    for record in (stray, joined):
        record.source_uri.encode()
        record.fingerprint.encode()


def test_names_with_special_characters_can_be_opened(tmp_path: Path) -> None:
    touch(tmp_path, "a b%20#?\n.jpg", "file:é☃.jpg")
    assert [read_content(r.source_uri, 100)[:10] for r in read_records(str(tmp_path))] == [b"content of"] * 2


def test_the_fingerprint_depends_on_name_and_size_but_not_on_the_location(tmp_path: Path) -> None:
    def fingerprint(folder: str, name: str, content: bytes) -> str:
        path = tmp_path / folder / "sub" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return only(tmp_path / folder).fingerprint

    expected = fingerprint("first", "1.jpg", b"four")
    assert fingerprint("second", "1.jpg", b"five") == expected
    assert fingerprint("longer", "1.jpg", b"sixteen") != expected
    assert fingerprint("renamed", "2.jpg", b"four") != expected


def test_counting_candidates_stops_at_the_limit(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.mp4")
    assert count_candidates(str(tmp_path), 2) == 2
    assert count_candidates(str(tmp_path), 10) == 3


def test_an_absent_source_a_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "file.jpg", "empty/.hidden")
    messages = {"none": "no such file or folder", "file.jpg": "found a file", "empty": "contains no files"}
    for source, message in messages.items():
        with pytest.raises(SourceError, match=message):
            list(read_records(str(tmp_path / source)))


def test_a_url_column_for_a_source_without_columns_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    with pytest.raises(SourceError, match=r"a source of type folder has no columns; omit --url-column"):
        list(read_records(str(tmp_path), tables=TableOptions("address")))
    with pytest.raises(SourceError, match="no such file or folder"):
        list(read_records(str(tmp_path / "absent"), tables=TableOptions("address")))


def test_urls_as_sources_are_refused() -> None:
    for source in ("gs://bucket/crawl", "https://example.org/crawl"):
        with pytest.raises(
            SourceError,
            match="expected a folder, a file or s3://bucket/prefix; to download images from URLs, list them",
        ):
            list(read_records(source))


def test_a_workspace_inside_its_source_is_refused_by_any_name(tmp_path: Path) -> None:
    touch(tmp_path, "crawl/1.jpg")
    (tmp_path / "alias").symlink_to("crawl", target_is_directory=True)
    source = str(tmp_path / "crawl")
    for inside in ("crawl", "crawl/ws", "crawl/../crawl/ws", "alias/new/ws"):
        with pytest.raises(ConfigError, match="lies inside the source"):
            check_workspace_location([source], LocalStorage(str(tmp_path / inside)))
    with pytest.raises(ConfigError, match="lies inside the source"):
        check_workspace_location([str(tmp_path / "alias")], LocalStorage(str(tmp_path / "crawl/ws")))
    for outside in ("ws", "crawl/../ws", "crawls"):
        check_workspace_location([source], LocalStorage(str(tmp_path / outside)))


def fail_with(code: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


FAULTS = [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT, errno.ENOENT]


@pytest.mark.parametrize("code", FAULTS)
def test_a_fault_of_the_machine_is_not_a_rejection(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ingest.sources.content.os.open", fail_with(code))
    with pytest.raises(StorageError, match=rf"{tmp_path}/1\.jpg: {os.strerror(code)}"):
        read_content(str(tmp_path / "1.jpg"), 100)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO])
def test_a_fault_of_the_file_is_a_rejection(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ingest.sources.content.os.open", fail_with(code))
    with pytest.raises(Rejected) as caught:
        read_content(str(tmp_path / "1.jpg"), 100)
    assert (caught.value.reason, caught.value.detail) == ("unreadable", os.strerror(code))


def test_a_fault_of_the_machine_ends_the_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "1.jpg")
    write_metadata(tmp_path, [node("1.jpg")])
    monkeypatch.setattr("pipeline.ingest.sources.content.os.open", fail_with(errno.EIO))
    with pytest.raises(StorageError, match=r"tag\.json: Input/output error"):
        list(read_records(str(tmp_path)))


def test_a_file_that_was_removed_is_a_row_and_a_folder_that_was_unmounted_a_fault(tmp_path: Path) -> None:
    touch(tmp_path, "in/1.jpg", "in/2.jpg")
    first, second = (record.source_uri for record in read_records(str(tmp_path)))
    Path(first).unlink()
    with pytest.raises(Rejected, match="missing_file"):
        read_content(first, 100)
    Path(second).unlink()
    for _ in ("empty", "gone"):
        with pytest.raises(StorageError, match="the same command continues once it can be read"):
            read_content(second, 100)
        if (tmp_path / "in").exists():
            (tmp_path / "in").rmdir()


def test_files_that_are_too_large_or_not_regular_are_rejected(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    os.mkfifo(tmp_path / "pipe")
    refused = {
        "1.jpg": "too_many_bytes",
        "a" * 300: "unreadable",
        "\0": "unreadable",
        "pipe": "unreadable",
        ".": "unreadable",
    }
    for name, reason in refused.items():
        with pytest.raises(Rejected) as caught:
            read_content(str(tmp_path / name), max_bytes=5)
        assert caught.value.reason == reason
