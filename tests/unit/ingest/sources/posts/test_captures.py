"""Tables of posts, as 4CAT, Zeeschuimer and Apify write them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import SourceType
from pipeline.errors import SourceError
from pipeline.ingest.sources.detect import read_records
from pipeline.ingest.sources.posts import apify, fourcat, zeeschuimer
from pipeline.ingest.sources.posts.captures import Captures, tool_of
from pipeline.ingest.sources.posts.post import PostOptions, pseudonym
from pipeline.ingest.sources.tables.table_records import TableOptions
from pipeline.ingest.sources.tree import File
from pipeline.records import CrawlRecord
from tests.support.dump_files import put
from tests.support.fuzzing import fuzzed

TAKEN = datetime(2026, 10, 1, 10, tzinfo=UTC)
SIGNED = "https://cdn.example/v/{}.jpg?stp=dst-jpg_e35,s1080&oe=6A000000"


def read(path: Path, source_type: SourceType = "auto", **options: Any) -> list[CrawlRecord]:
    return list(read_records(str(path), source_type, TableOptions(posts=PostOptions(**options))))


def table(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(buffer, names)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def array(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, indent=1).encode()


FOURCAT: list[dict[str, Any]] = [
    {
        "thread_id": "A", "id": "A", "timestamp": "2026-10-01 10:00:00", "body": "Trevi\n#Roma", "author": "someone",
        "url": "https://www.instagram.com/p/A", "media_type": "mixed", "num_likes": 10, "hashtags": "Roma,trevi",
        "image_urls": f"{SIGNED.format(1)},{SIGNED.format(2)}",
        "media_urls": f"{SIGNED.format(1)},https://cdn.example/2.mp4?x=1,2",
    },
    {
        "thread_id": "B", "id": "B", "timestamp": "2026-10-01 10:00:00", "body": "film", "author": "other",
        "url": "https://www.instagram.com/p/B", "media_type": "video", "image_urls": SIGNED.format(3), "hashtags": "",
        "media_urls": "https://cdn.example/3.mp4",
    },
    {"thread_id": "C", "id": "C", "timestamp": "", "body": "", "image_urls": "", "media_urls": "", "url": "x"},
]  # fmt: skip
APIFY: list[dict[str, Any]] = [
    {
        "id": "1", "type": "Sidecar", "shortCode": "A", "caption": "Trevi\n#Roma", "hashtags": ["Roma", "trevi"],
        "url": "https://www.instagram.com/p/A/", "displayUrl": SIGNED.format(1), "images": [SIGNED.format(9)],
        "timestamp": "2026-10-01T10:00:00.000Z", "ownerUsername": "someone",
        "childPosts": [
            {"type": "Image", "displayUrl": SIGNED.format(1)}, {"type": "Video", "displayUrl": SIGNED.format(2)},
        ],
    },
    {
        "id": "2", "type": "Video", "shortCode": "B", "caption": "film", "hashtags": [], "images": [],
        "url": "https://www.instagram.com/p/B/", "displayUrl": SIGNED.format(3), "ownerUsername": "other",
        "timestamp": "2026-10-01T10:00:00.000Z",
    },
    {"id": "3", "type": "Image", "shortCode": "C", "url": "https://www.instagram.com/p/C/", "displayUrl": ""},
]  # fmt: skip


def captured(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "nav_index": "1", "item_id": data.get("code"), "timestamp_collected": 1_790_000_000_000, "user_agent": "x",
        "source_platform": "instagram.com", "source_platform_url": "https://www.instagram.com/explore/tags/trevi/",
        "source_url": "https://www.instagram.com/api/graphql", "data": data,
    }  # fmt: skip


def image(i: int) -> dict[str, Any]:
    sizes = [{"url": SIGNED.format(i), "width": 1080, "height": 1080}, {"url": "https://cdn.example/small.jpg"}]
    return {"image_versions2": {"candidates": sizes}}


ITEMS: list[dict[str, Any]] = [
    {
        "code": "A", "taken_at": int(TAKEN.timestamp()), "media_type": 8, "caption": {"text": "Trevi\n#Roma #trevi"},
        "carousel_media": [{"media_type": 1, **image(1)}, {"media_type": 2, **image(2)}],
        "user": {"username": "someone"}, "like_count": 10, "location": {"name": "Roma"},
    },
    {
        "code": "B", "taken_at": int(TAKEN.timestamp()), "media_type": 2, "caption": {"text": "film"}, **image(3),
        "user": {"username": "other"},
    },
    {"code": "C", "media_type": 1, "caption": None},
]  # fmt: skip
GRAPH: list[dict[str, Any]] = [
    {
        "shortcode": "A", "__typename": "GraphSidecar", "taken_at_timestamp": int(TAKEN.timestamp()),
        "edge_media_to_caption": {"edges": [{"node": {"text": "Trevi\n#Roma #trevi"}}]},
        "display_url": SIGNED.format(1), "owner": {"username": "someone"}, "edge_sidecar_to_children": {"edges": [
            {"node": {"__typename": "GraphImage", "display_url": SIGNED.format(1)}},
            {"node": {"__typename": "GraphVideo", "display_url": SIGNED.format(2), "is_video": True}},
        ]},
    },
    {
        "shortcode": "B", "__typename": "GraphVideo", "taken_at_timestamp": int(TAKEN.timestamp()),
        "edge_media_to_caption": {"edges": [{"node": {"text": "film"}}]}, "display_url": SIGNED.format(3),
        "owner": {"username": "other"},
    },
    {"shortcode": "C", "__typename": "GraphImage"},
]  # fmt: skip


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the columns in which Apify writes a nested value as CSV."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {
            key: cell
            for inner, item in items
            for key, cell in flat(item, f"{name}/{inner}" if name else str(inner)).items()
        }
    return {name: value}


CAPTURES: dict[str, tuple[SourceType, str, bytes]] = {
    "4CAT, CSV": ("fourcat", "x.csv", table(FOURCAT)),
    "4CAT, JSON lines": ("fourcat", "x.ndjson", lines(FOURCAT)),
    "Apify, JSON": ("apify", "x.json", array(APIFY)),
    "Apify, JSON lines": ("apify", "x.jsonl", lines(APIFY)),
    "Apify, CSV": ("apify", "x.csv", table([flat(row) for row in APIFY])),
    "Apify, no suffix": ("apify", "dataset", array(APIFY)),
    "Zeeschuimer, items": ("zeeschuimer", "x.ndjson", lines(list(map(captured, ITEMS)))),
    "Zeeschuimer, graph": ("zeeschuimer", "x.ndjson", lines(list(map(captured, GRAPH)))),
}


@pytest.mark.parametrize("named", [False, True], ids=["detected", "named"])
@pytest.mark.parametrize("name", CAPTURES)
def test_a_post_has_one_record_per_image(name: str, named: bool, tmp_path: Path) -> None:
    source_type, file, data = CAPTURES[name]
    put(tmp_path, {file: data})
    found = read(tmp_path / file, source_type if named else "auto")
    assert [(r.shortcode, r.fingerprint, r.problem) for r in found] == [
        ("A", "A/1", None), ("A", "A/2", "video"), ("B", "B/1", "video"), ("C", "C/1", "no_address"),
    ]  # fmt: skip
    first, second = found[:2]
    assert (first.source_uri, first.source_url, first.file_name) == (SIGNED.format(1), SIGNED.format(1), "1.jpg")
    assert (first.caption, first.taken_at) == ("Trevi\n#Roma", TAKEN) or name.startswith("Zeeschuimer")
    assert first.caption is not None
    assert first.caption.startswith("Trevi\n#Roma")
    assert [tag.lower() for tag in first.hashtags] == ["roma", "trevi"]
    assert (second.caption, second.taken_at) == (first.caption, TAKEN)
    assert "someone" not in json.dumps(first.extra)


@pytest.mark.parametrize("name", CAPTURES)
def test_thumbnails_of_videos_and_pseudonyms_of_authors_come_on_request(name: str, tmp_path: Path) -> None:
    _, file, data = CAPTURES[name]
    put(tmp_path, {file: data})
    found = read(tmp_path / file, video_thumbnails=True, author_hash=True)
    assert [r.source_url for r in found] == [SIGNED.format(1), SIGNED.format(2), SIGNED.format(3), None]
    assert [r.problem for r in found] == [None, None, None, "no_address"]
    assert [r.extra.get("video_thumbnail") for r in found] == [None, True, True, None]
    assert [r.extra.get("author_hash") for r in found[:3]] == [pseudonym("someone")] * 2 + [pseudonym("other")]


def test_a_post_that_was_captured_twice_is_one_and_the_complete_capture_counts(tmp_path: Path) -> None:
    partial = {"code": "A", "__typename": "XIGPolarisMedia", "display_uri": SIGNED.format(7), "caption": {"text": "x"}}
    whole = {**partial, "taken_at": int(TAKEN.timestamp()), "display_uri": SIGNED.format(8)}
    alone = {"code": "D", "__typename": "XIGPolarisMedia", "display_uri": SIGNED.format(9)}
    put(tmp_path, {"x.ndjson": lines([captured(data) for data in (partial, alone, whole, partial, whole, alone)])})
    found = read(tmp_path / "x.ndjson")
    assert [(r.fingerprint, r.source_url) for r in found] == [("A/1", SIGNED.format(8)), ("D/1", SIGNED.format(9))]


def test_advertisements_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ads = [{**ITEMS[1], "code": f"ad{i}", "product_type": "ad"} for i in range(3)]
    put(tmp_path, {"x.ndjson": lines([captured(data) for data in (*ads, ITEMS[0])])})
    assert {r.shortcode for r in read(tmp_path / "x.ndjson")} == {"A"}
    assert "3 advertisements left out" in capsys.readouterr().out


def test_a_folder_of_captures_is_a_table_and_one_of_metadata_is_not(tmp_path: Path) -> None:
    put(tmp_path / "captures", {"1.json": array(APIFY[:1]), "2.json": array(APIFY[1:])})
    put(tmp_path / "captures", {"3.json": array(APIFY)})  # a later capture of the same posts
    assert [r.fingerprint for r in read(tmp_path / "captures")] == ["A/1", "A/2", "B/1", "C/1"]
    put(tmp_path / "files", {"1.json": b'{"shortCode": "A", "displayUrl": "https://a.example/1.jpg"}', "1.jpg": b"x"})
    assert [r.file_name for r in read(tmp_path / "files")] == ["1.jpg"]


def test_a_row_that_is_no_post_is_a_rejected_record(tmp_path: Path) -> None:
    put(tmp_path, {"x.json": array([APIFY[2], {"error": "not_found"}])})
    assert [r.problem for r in read(tmp_path / "x.json")] == ["broken_metadata", "no_address"]


def test_the_rest_of_a_broken_array_is_one_rejected_record(tmp_path: Path) -> None:
    put(tmp_path, {"x.json": array(APIFY)[:-60]})
    found = read(tmp_path / "x.json")
    assert [r.problem for r in found] == [None, "video", "video", "broken_metadata"]
    put(tmp_path, {"x.json": b"<html>"})
    with pytest.raises(SourceError, match="neither a JSON array nor JSON lines"):
        read(tmp_path / "x.json")


def test_a_capture_that_is_cut_off_keeps_its_incomplete_posts(tmp_path: Path) -> None:
    partial = [captured({"code": f"P{i}", "display_uri": SIGNED.format(i)}) for i in range(2000)]
    put(tmp_path, {"x.ndjson.gz": gzip.compress(lines(partial))[:-50]})
    found = read(tmp_path / "x.ndjson.gz")
    assert found[0].fingerprint == "P0/1"
    assert found[-1].problem == "truncated"
    assert len(found) > 1900


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_an_array_may_have_a_mark(encoding: str, tmp_path: Path) -> None:
    put(tmp_path, {"x.json": array(APIFY).decode().replace("Trevi", "Però").encode(encoding)})
    assert read(tmp_path / "x.json")[0].caption == "Però\n#Roma"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(SIGNED),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["node", "url", "text", "0"]), inner),
    max_leaves=6,
)
NAMES = sorted({*FOURCAT[0], *APIFY[0], *flat(APIFY[0]), *ITEMS[0], *GRAPH[0], "data", "source_platform"})


@pytest.mark.fuzz
@fuzzed(300)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=12), st.sampled_from([fourcat, apify, zeeschuimer]))
def test_any_row_is_a_post_or_a_rejected_record(row: dict[str, Any], module: Any) -> None:
    wrapped = {**row, "data": row} if module is zeeschuimer else row
    module.is_post(wrapped)
    tool_of([wrapped])
    for tool in ("fourcat", "zeeschuimer", "apify"):
        captures = Captures(File("x", "/x", None), tool, PostOptions(True, True), set())
        for record in [*captures.add(1, wrapped), *captures.finish()]:
            assert record.fingerprint
            assert record.problem or record.source_uri.lower().startswith("http")
