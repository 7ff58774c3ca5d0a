"""Property tests: reading a source with arbitrary bytes gives records that can be stored, or a SourceError."""

from __future__ import annotations

import gzip
import json
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import SourceType
from pipeline.errors import SourceError
from pipeline.ingest.plan import write_plan
from pipeline.ingest.sources.detect import read_records
from pipeline.records import CrawlRecord
from tests.support.crawl_files import node
from tests.support.dump_files import (
    gallery_dl_dump,
    gallery_dl_sidecar,
    img2dataset_dump,
    instaloader_dump,
    instaloader_node,
    parquet,
    put,
    tar,
    zipped,
)
from tests.support.fuzzing import fuzzed

pytestmark = [pytest.mark.slow, pytest.mark.fuzz]

CSV = b'id,url,caption\n1,https://a.example/1.jpg,"one ""x"" #y"\n2,https://a.example/2.jpg,\n'
JSONL = b'{"url": "https://a.example/1", "taken_at": 5, "tags": ["a"]}\n{"url": "/etc"}\n'
POST = "2020-09-13_12-26-40_UTC"
PARQUET = parquet({"url": ["https://a.example/1", None], "taken_at": [1, 2], "n": [{"a": [1]}, None]})

SEEDS: dict[str, list[bytes]] = {
    "x.csv": [CSV],
    "x.tsv": [CSV.replace(b",", b"\t")],
    "x.jsonl": [JSONL],
    "x.json": [b"[" + JSONL.strip().replace(b"\n", b",") + b"]", JSONL],
    "x.txt": [b"https://a.example/1\n# x\n", "https://a.example/é\n".encode("utf-16"), b"https://a.example/\xe9\n"],
    "x.parquet": [PARQUET],
    "x.csv.gz": [gzip.compress(CSV)],
    "x.parquet.gz": [gzip.compress(PARQUET)],
    "x.tar": [tar([("a.jpg", b"x"), ("a.json", b'{"caption": "y"}')]), tar([("d/" * 100 + "b.jpg", b"z")])],
    "x.zip": [
        zipped([("a.jpg", b"x"), ("a.json", b'{"caption": "y"}'), (".metadata.json", b'{"u": {"filename": "a.jpg"}}')]),
        zipped([("x.csv", CSV)]),
    ],
    "x.tar.gz": [tar([("a.jpg", b"x"), ("a.txt", b"y")], "w:gz")],
    f"{POST}.json.xz": [instaloader_node("a")],
    f"{POST}.json": [lzma.decompress(instaloader_node("a"))],
    f"{POST}.txt": [b"caption"],
    "x.jpg.json": [gallery_dl_sidecar(1)],
    "tag.json": [json.dumps({"GraphImages": [node("x.jpg")]}).encode()],
    "00000.parquet": [img2dataset_dump()["00000.parquet"]],
    "x": [CSV, JSONL, PARQUET, b"https://a.example/1"],
}
"""Valid contents by a file name that selects their parser."""

BOUNDED = fuzzed(60)


def check(source: Path, source_type: SourceType = "auto") -> list[CrawlRecord]:
    """Return the records of `source`, after writing them to a plan; none if the source is refused."""
    try:
        records = list(read_records(str(source), source_type))
    except SourceError as error:
        assert "\n" not in str(error)
        str(error).encode()
        return []
    with tempfile.TemporaryDirectory() as folder:
        plan = write_plan(records, Path(folder) / "plan.parquet", 7)
        assert plan.records == len(records)
    return records


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A valid file in which some bytes are overwritten, removed or inserted, or whose end is missing."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["overwrite", "insert", "delete", "cut"]))
        piece = draw(st.one_of(st.binary(max_size=8), st.sampled_from([b'"', b"\0", b"\n", b"{", b"[", b"\xff" * 4])))
        if kind == "overwrite":
            data[position : position + len(piece)] = piece
        elif kind == "insert":
            data[position:position] = piece
        elif kind == "delete":
            del data[position : position + len(piece)]
        else:
            del data[position:]
    return bytes(data)


@pytest.mark.parametrize("name", SEEDS)
def test_any_content_gives_records_or_a_source_error(name: str) -> None:
    @BOUNDED
    @given(st.one_of(damaged(SEEDS[name]), st.binary(max_size=600)))
    def any_content(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            companions = {} if name.startswith("x") else {"00000.tar": tar([]), f"{POST}.jpg": b"x", "x.jpg": b"x"}
            put(Path(folder), {**companions, name: data})
            records = check(Path(folder))
            assert {"x.jpg", f"{POST}.jpg"} & set(companions) <= {r.file_name for r in records}
            check(Path(folder) / name)

    any_content()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    "url", "caption", "taken_at", "tags", "shortcode", "node", "date", "id", "display_url", "is_video", "owner",
    "edge_media_to_caption", "edge_sidecar_to_children", "GraphImages", "urls", "taken_at_timestamp", "description",
]  # fmt: skip


def jsonl(document: Any) -> bytes:
    return JSONL + json.dumps(document).encode() + b"\n"


WRITERS: dict[str, Callable[[Any], bytes]] = {
    "x.jsonl": jsonl,
    f"{POST}.json.xz": lambda document: lzma.compress(json.dumps({"node": document}).encode(), preset=0),
    "x.jpg.json": lambda document: json.dumps(document).encode(),
    "tag.json": lambda document: json.dumps({"GraphImages": [document]}).encode(),
    "x.tar": lambda document: tar([("a.jpg", b"x"), ("a.json", json.dumps(document).encode())]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_any_json_gives_records_or_a_source_error(name: str) -> None:
    @BOUNDED
    @given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6))
    def any_json(document: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            check(put(Path(folder), {"x.jpg": b"x", f"{POST}.jpg": b"x", name: WRITERS[name](document)}))

    any_json()


NAMES = st.one_of(
    st.sampled_from(sorted({*instaloader_dump(), *gallery_dl_dump(), *img2dataset_dump()})).map(
        lambda path: path.rpartition("/")[2]
    ),
    st.binary(min_size=1, max_size=40)
    .map(lambda name: name.translate(None, b"/\0").decode("utf-8", "surrogateescape"))
    .filter(lambda name: name not in {"", ".", ".."}),
)


@BOUNDED
@given(st.dictionaries(NAMES, st.binary(max_size=30), min_size=1, max_size=6), st.booleans())
def test_any_names_give_records_or_a_source_error(files: dict[str, bytes], deeper: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(put(Path(folder) / "dense0" / "imgs" if deeper else Path(folder), files))
        check(Path(folder), "megadepth")
        check(Path(folder), "class-folders")


@BOUNDED
@given(st.lists(st.tuples(NAMES, st.binary(max_size=30)), max_size=6), st.sampled_from(["w", "w:gz"]))
def test_any_members_of_a_tar_give_records(members: list[tuple[str, bytes]], mode: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        records = check(put(Path(folder), {"x.tar": tar(members, mode)}) / "x.tar")
        assert len(records) <= len(members)
