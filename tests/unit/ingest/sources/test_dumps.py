from __future__ import annotations

import json
import lzma
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import SourceType
from pipeline.errors import SourceError
from pipeline.ingest.sources.content import read_content
from pipeline.ingest.sources.detect import read_records
from pipeline.ingest.sources.scrapers import instaloader
from pipeline.records import CrawlRecord
from tests.support.crawl_files import node, write_metadata
from tests.support.dump_files import (
    gallery_dl_dump,
    gallery_dl_sidecar,
    img2dataset_dump,
    instaloader_dump,
    instaloader_node,
    megadepth_tree,
    parquet,
    put,
    tar,
)

TAKEN = datetime(2020, 9, 13, 12, 26, 40, tzinfo=UTC)


def records(source: Path, source_type: SourceType = "auto") -> dict[str, CrawlRecord]:
    found = list(read_records(str(source), source_type))
    assert len({r.file_name for r in found}) == len(found)
    return {r.file_name: r for r in found}


def problems(source: Path, source_type: SourceType = "auto") -> dict[str, str | None]:
    return {name: record.problem for name, record in records(source, source_type).items()}


@pytest.mark.parametrize("source_type", ["auto", "folder", "instaloader"])
def test_an_instaloader_dump(source_type: SourceType, tmp_path: Path) -> None:
    found = records(put(tmp_path, instaloader_dump()), source_type)
    assert {name.removeprefix("2020-"): r.problem for name, r in found.items()} == {
        "09-13_12-26-40_UTC.jpg": None, "09-14_00-00-00_UTC_1.jpg": None, "09-14_00-00-00_UTC_2.mp4": "video",
        "09-14_00-00-00_UTC_3.jpg": "missing_file", "09-15_00-00-00_UTC.jpg": None,
        "09-15_00-00-00_UTC.mp4": "video", "01-01_00-00-00_UTC_profile_pic.jpg": "profile_picture",
    }  # fmt: skip
    single = found["2020-09-13_12-26-40_UTC.jpg"]
    assert (single.shortcode, single.caption, single.taken_at) == ("single", "Fontana #Trevi", TAKEN)
    assert (single.hashtags, single.source_url) == (["trevi"], "https://cdn.example/single.jpg")
    assert single.extra == {"likes": 7, "owner_id": "9"}
    child = found["2020-09-14_00-00-00_UTC_3.jpg"]
    assert (child.shortcode, child.source_url) == ("carousel", "https://cdn.example/c3.jpg")
    assert found["2020-09-15_00-00-00_UTC.jpg"].extra["video_thumbnail"] is True


def test_instaloader_without_metadata_uses_the_file_name_and_the_caption_file(tmp_path: Path) -> None:
    name = "2020-09-13_12-26-40_UTC"
    put(tmp_path, {f"{name}.jpg": b"x", f"{name}.txt": "Però #Roma\n".encode()})
    record = records(tmp_path)[f"{name}.jpg"]
    assert (record.taken_at, record.caption, record.hashtags) == (TAKEN, "Però #Roma", ["roma"])


def test_the_plain_json_and_other_keys_of_older_instaloader_versions(tmp_path: Path) -> None:
    name = "2020-09-13_12-26-40_UTC"
    old = {"node": {"code": "abc", "date": 1_600_000_000, "caption": "#x", "display_src": "https://a.example/1.jpg"}}
    put(tmp_path, {f"{name}.jpg": b"x", f"{name}.json": json.dumps(old).encode()})
    record = records(tmp_path)[f"{name}.jpg"]
    assert (record.shortcode, record.hashtags, record.source_url) == ("abc", ["x"], "https://a.example/1.jpg")


BOMB = lzma.compress(bytes(2 * 2**20))
BROKEN = {
    "cut": instaloader_node("x")[:50],
    "no xz": b"{}",
    "no json": lzma.compress(b"["),
    "deep": lzma.compress(b'{"node":' * 10_000 + b"1" + b"}" * 10_000),
    "list": lzma.compress(b"[1]"),
    "bomb": BOMB,
    "empty": b"",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_instaloader_metadata_is_a_rejected_record_and_its_image_is_kept(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instaloader, "MAX_NODE_BYTES", 2**20)
    name = "2020-09-13_12-26-40_UTC"
    put(tmp_path, {f"{name}.jpg": b"x", f"{name}.json.xz": BROKEN[kind]})
    found = records(tmp_path)
    assert {n: r.problem for n, r in found.items()} == {f"{name}.jpg": None, f"{name}.json.xz": "broken_metadata"}
    assert found[f"{name}.json.xz"].problem_detail
    assert found[f"{name}.jpg"].taken_at == TAKEN


def test_all_spellings_of_the_files_of_an_instaloader_post_are_read(tmp_path: Path) -> None:
    names = [f"2020-09-13_12-26-40_UTC{end}" for end in (".jpg", ".JPG", "_1.jpg", "_01.jpg", "_1.png")]
    assert sorted(records(put(tmp_path, dict.fromkeys(names, b"x")))) == sorted(names)


@pytest.mark.parametrize("source_type", ["auto", "gallery-dl"])
def test_a_gallery_dl_dump(source_type: SourceType, tmp_path: Path) -> None:
    found = records(put(tmp_path, gallery_dl_dump()), source_type)
    assert {name: r.problem for name, r in found.items()} == {
        "11.jpg": None, "20_21.webp": None, "31.mp4": "video", "41.jpg": "missing_file", "51.jpg": None,
    }  # fmt: skip
    first = found["11.jpg"]
    assert (first.shortcode, first.caption, first.taken_at) == ("post11", "Fontana di Trevi #Roma", TAKEN)
    assert (first.hashtags, first.source_url) == (["Roma"], "https://cdn.example/11.jpg")
    assert first.extra["username"] == "someone"
    assert first.extra["width"] == 1080
    assert found["41.jpg"].shortcode == "post41"
    assert found["51.jpg"].caption is None


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"[" * 10_000, b"\xff\xfe"])
def test_broken_sidecars_are_rejected_records_and_their_images_are_kept(content: bytes, tmp_path: Path) -> None:
    put(tmp_path, {"1.jpg": b"x", "1.jpg.json": content, "2.jpg": b"y", "2.jpg.json": gallery_dl_sidecar(2)})
    assert problems(tmp_path) == {"1.jpg": None, "1.jpg.json": "broken_metadata", "2.jpg": None}


def test_a_folder_may_contain_several_dumps(tmp_path: Path) -> None:
    put(tmp_path, {**instaloader_dump(), **gallery_dl_dump(), "plain/x.jpg": b"x"})
    put(tmp_path / "#trevi", {"1_n.jpg": b"y"})
    write_metadata(tmp_path / "#trevi", [node("1_n.jpg")])
    found = records(tmp_path)
    assert len(found) == 7 + 5 + 1 + 1
    assert found["1_n.jpg"].shortcode == "code of 1_n.jpg"


@pytest.mark.parametrize("source_type", ["auto", "img2dataset", "tar"])
def test_the_output_of_img2dataset(source_type: SourceType, tmp_path: Path) -> None:
    put(tmp_path, img2dataset_dump())
    first, second, failed = read_records(str(tmp_path), source_type)
    assert (first.file_name, second.file_name) == ("000000000.jpg", "000000001.jpg")
    assert (first.caption, first.hashtags, first.source_url) == (
        "photo 0 #Trevi",
        ["trevi"],
        "https://example.org/0.jpg",
    )
    assert first.extra == {"key": "000000000", "width": 48, "original_width": 96, "exif": "{}", "sha256": "x"}
    assert read_content(first.source_uri, 10**6).startswith(b"\xff\xd8")
    assert (failed.problem, failed.source_url, failed.caption) == (
        "missing_file",
        "https://example.org/2.jpg",
        "photo 2",
    )
    assert failed.problem_detail == "img2dataset: HTTP Error 404: Not Found"


def test_a_broken_table_of_img2dataset_is_a_rejected_record(tmp_path: Path) -> None:
    put(tmp_path, {**img2dataset_dump(), "00000.parquet": b"PAR1 no"})
    assert problems(tmp_path)["00000.parquet"] == "broken_metadata"


def test_images_that_are_in_the_table_but_not_in_the_tar_are_missing(tmp_path: Path) -> None:
    put(tmp_path, {"00000.tar": tar([]), "00000.parquet": parquet({"url": ["https://a.example/1"], "key": ["0"]})})
    (record,) = read_records(str(tmp_path))
    assert (record.problem, record.problem_detail) == ("missing_file", "img2dataset: the image is not there")


def test_one_scene_of_megadepth_is_one_collection(tmp_path: Path) -> None:
    put(tmp_path, megadepth_tree())
    scene = tmp_path / "phoenix/S6/zl548/MegaDepth_v1/0000"
    for source, source_type in [(scene, "auto"), (scene, "megadepth"), (tmp_path / "0000", "auto")]:
        found = records(source, source_type)  # type: ignore[arg-type]
        assert list(found) == ["a.jpg", "b.jpg"]
        assert found["a.jpg"].extra == {"scene": "0000"}
        assert read_content(found["b.jpg"].source_uri, 10**6)


@pytest.mark.parametrize("source_type", ["auto", "megadepth"])
def test_a_tree_of_scenes_is_refused_and_the_scenes_are_named(source_type: SourceType, tmp_path: Path) -> None:
    put(tmp_path, megadepth_tree())
    for source in (tmp_path, tmp_path / "phoenix/S6/zl548/MegaDepth_v1"):
        with pytest.raises(
            SourceError, match=r"2 scenes of MegaDepth \(0000, 0022\).* choose one of them, such as --source .*/0000,"
        ):
            list(read_records(str(source), source_type))
    assert len(records(tmp_path, "folder")) == 4


def test_the_other_archives_of_megadepth(tmp_path: Path) -> None:
    put(tmp_path, {"MegaDepth_v1_SfM/0000/images/a.jpg": b"x", "MegaDepth_v1_SfM/0000/sparse/points.bin": b"x"})
    put(tmp_path, {"Undistorted_SfM/0001/images/b.jpg": b"x", "Undistorted_SfM/0000/images/c.jpg": b"x"})
    assert list(records(tmp_path / "MegaDepth_v1_SfM/0000")) == ["a.jpg"]
    assert list(records(tmp_path / "0001")) == ["b.jpg"]
    with pytest.raises(SourceError, match=r"scene 0000 exists 2 times; choose one of MegaDepth_v1_SfM/0000, Undis"):
        list(read_records(str(tmp_path / "0000")))
    with pytest.raises(SourceError, match="no such file or folder"):
        list(read_records(str(tmp_path / "0077")))


def test_other_numbered_folders_are_not_scenes(tmp_path: Path) -> None:
    put(tmp_path, {"2019/images/a.jpg": b"x", "2020/b.jpg": b"x", "0001/images/c.jpg": b"x"})
    assert set(records(tmp_path)) == {"a.jpg", "b.jpg", "c.jpg"}
    with pytest.raises(SourceError, match="not a scene of MegaDepth"):
        list(read_records(str(tmp_path), "megadepth"))


EXPECTED: list[tuple[SourceType, str]] = [
    ("instaloader", "no files of type instaloader; expected files such as 2020-09-13"),
    ("instagram-scraper", "GraphImages beside the images"),
    ("gallery-dl", "a .json file beside each image"),
    ("img2dataset", "tars or folders with a .parquet table"),
    ("tar", r"expected \.tar, \.tar\.gz or \.tgz files"),
]


@pytest.mark.parametrize(("source_type", "message"), EXPECTED)
def test_a_source_without_the_given_layout_is_refused(source_type: SourceType, message: str, tmp_path: Path) -> None:
    put(tmp_path, {"1.jpg": b"x"})
    with pytest.raises(SourceError, match=message):
        list(read_records(str(tmp_path), source_type))


def test_several_sources_are_one_crawl_in_the_order_given(tmp_path: Path) -> None:
    put(tmp_path, {"a/1.jpg": b"x", "b/2.jpg": b"x", "c.txt": b"https://example.org/3.jpg\n"})
    sources: list[str] = [str(tmp_path / name) for name in ("b", "c.txt", "a")]
    assert [r.file_name for r in read_records(sources)] == ["2.jpg", "3.jpg", "1.jpg"]


@pytest.mark.parametrize("value", [None, 7, "text", [], {}, [[]], {"edges": 3}, True, {"edges": [{"node": 3}]}])
def test_values_of_any_type_are_tolerated(value: Any, tmp_path: Path) -> None:
    keys = ["shortcode", "taken_at_timestamp", "is_video", "display_url", "edge_media_to_caption", "owner",
            "edge_sidecar_to_children", "caption"]  # fmt: skip
    for i, key in enumerate(keys):
        name = f"2020-09-13_12-26-{i:02d}_UTC"
        put(tmp_path, {f"{name}.jpg": b"x", f"{name}.json.xz": instaloader_node("x", **{key: value})})
    for i, key in enumerate(["post_shortcode", "date", "description", "tags", "display_url"]):
        put(tmp_path, {f"{i}.jpg": b"x", f"{i}.jpg.json": gallery_dl_sidecar(i, **{key: value})})
    assert set(problems(tmp_path).values()) <= {None, "missing_file"}


def test_the_output_of_img2dataset_as_files(tmp_path: Path) -> None:
    urls = [f"https://example.org/{i}.jpg" for i in range(3)]
    table = {
        "url": urls,
        "key": [f"00000000{i}" for i in range(3)],
        "status": ["success", "success", "failed_to_download"],
        "error_message": [None, None, "HTTP Error 404: Not Found"],
    }
    files = {"00000.parquet": parquet(table), "00000_stats.json": b"{}"}
    for i in (0, 1):
        document = {"url": urls[i], "caption": f"photo {i} #Trevi", "key": f"00000000{i}"}
        files[f"00000/00000000{i}.jpg"] = b"x"
        files[f"00000/00000000{i}.json"] = json.dumps(document).encode()
        files[f"00000/00000000{i}.txt"] = b"text"
    first, second, failed = read_records(str(put(tmp_path, files)), "img2dataset")
    assert (first.file_name, first.caption, first.source_url) == ("000000000.jpg", "photo 0 #Trevi", urls[0])
    assert (second.caption, second.problem) == ("photo 1 #Trevi", None)
    assert (failed.source_url, failed.problem) == (urls[2], "missing_file")
    assert failed.problem_detail == "img2dataset: HTTP Error 404: Not Found"


def test_metadata_of_the_same_stem_belongs_to_all_its_files(tmp_path: Path) -> None:
    files = {
        "a.b.jpg": b"1", "a.b.json": gallery_dl_sidecar(1), "a.b.txt": b"ignored, for there is a description",
        "clip.jpg": b"2", "clip.mp4": b"3", "clip.txt": "Stra\xdfe #Roma".encode("latin-1"),
        "alone.txt": b"x", "alone.json": b"{}", "c.jpg": b"4", "c.json": b"{", "d.jpg.json": gallery_dl_sidecar(4),
    }  # fmt: skip
    found = records(put(tmp_path, files))
    assert found["a.b.jpg"].caption == "Fontana di Trevi #Roma"
    assert {found[f"clip.{suffix}"].caption for suffix in ("jpg", "mp4")} == {"Straße #Roma"}
    assert found["clip.jpg"].hashtags == ["roma"]
    assert {name: r.problem for name, r in found.items()} == {
        "a.b.jpg": None, "clip.jpg": None, "clip.mp4": "video", "alone.txt": None, "alone.json": None, "c.jpg": None,
        "c.json": "broken_metadata", "d.jpg": "missing_file",
    }  # fmt: skip


@pytest.mark.parametrize(
    "stem", ["CAAAAAAAAAB", "profile_2020-09-13_12-26-40_UTC", "2020-09-13 12-26-40 UTC", "trip_12", "a.b #c"]
)
def test_a_post_of_instaloader_may_have_any_name(stem: str, tmp_path: Path) -> None:
    files = {
        f"{stem}.jpg": b"x", f"{stem}.json.xz": instaloader_node("CODE"), f"{stem}.txt": b"other",
        f"{stem}_comments.json": b"[]", "#rome.json.xz": lzma.compress(b'{"node": {"name": "rome"}}'), "z.jpg": b"y",
    }  # fmt: skip
    found = records(put(tmp_path, files))
    assert {name: r.problem for name, r in found.items()} == {f"{stem}.jpg": None, "z.jpg": None}
    post = found[f"{stem}.jpg"]
    assert (post.shortcode, post.caption, post.taken_at) == ("CODE", "Fontana #Trevi", TAKEN)
    assert found["z.jpg"].shortcode is None


def test_a_post_of_instaloader_in_plain_json_with_any_name(tmp_path: Path) -> None:
    files = {"x y.jpg": b"x", "x y.json": lzma.decompress(instaloader_node("CODE"))}
    post = records(put(tmp_path, files))["x y.jpg"]
    assert (post.shortcode, post.hashtags, post.source_url) == ("CODE", ["trevi"], "https://cdn.example/CODE.jpg")


def test_the_parts_of_a_carousel_with_any_name(tmp_path: Path) -> None:
    children = [{"node": {"display_url": f"https://cdn.example/c{i}.jpg", "is_video": False}} for i in (1, 2)]
    carousel = instaloader_node("carousel", edge_sidecar_to_children={"edges": children})
    found = records(put(tmp_path, {"my post.json.xz": carousel, "my post_1.jpg": b"1"}))
    assert found["my post_1.jpg"].source_url == "https://cdn.example/c1.jpg"
    assert found["my post_2.jpg"].problem == "missing_file"
