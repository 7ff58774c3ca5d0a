from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceError
from pipeline.ingest.plan import write_plan
from pipeline.ingest.sources.detect import read_records
from pipeline.ingest.sources.tables import table_records as tables
from pipeline.ingest.sources.tables.table_records import TableOptions
from pipeline.records import CrawlRecord
from tests.support.dump_files import parquet, put

URL = "https://example.org/a/photo%20{}.jpg?size=l#top"
HEADER = ["id", "url", "caption", "taken_at", "hashtags", "shortcode", "likes"]
ROWS: list[list[Any]] = [
    ["1", URL.format(1), 'Però, "Trevi"\nby night', "2020-09-13T12:26:40Z", "#trevi roma", "abc", "5"],
    ["2", URL.format(2), "<b>#Roma</b>\x07", "1600000000", "", "", ""],
]


def quoted(rows: list[list[Any]], separator: str = ",") -> bytes:
    return "".join(
        separator.join('"' + str(cell).replace('"', '""') + '"' for cell in row) + "\r\n" for row in rows
    ).encode()


def objects() -> list[dict[str, Any]]:
    return [dict(zip(HEADER, row, strict=True)) for row in ROWS]


TABLES: dict[str, Callable[[], bytes]] = {
    "urls.csv": lambda: quoted([HEADER, *ROWS]),
    "marked.csv": lambda: b"\xef\xbb\xbf" + quoted([HEADER, *ROWS]),
    "semicolons.csv": lambda: quoted([HEADER, *ROWS], ";"),
    "urls.tsv": lambda: quoted([HEADER, *ROWS], "\t"),
    "urls.jsonl": lambda: "\n\n".join(json.dumps(row) for row in objects()).encode(),
    "urls.parquet": lambda: parquet({name: [row[i] for row in ROWS] for i, name in enumerate(HEADER)}),
}


def read(path: Path, url_column: str | None = None) -> list[CrawlRecord]:
    return list(read_records(str(path), tables=TableOptions(url_column)))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", TABLES)
def test_every_format_of_a_table_gives_the_same_records(name: str, packed: bool, tmp_path: Path) -> None:
    data = TABLES[name]()
    put(tmp_path, {f"{name}.gz": gzip.compress(data)} if packed else {name: data})
    (path,) = tmp_path.iterdir()
    for source in (path, tmp_path):
        first, second = read(source)
        assert (first.source_uri, first.source_url, first.file_name) == (URL.format(1), URL.format(1), "photo 1.jpg")
        assert first.caption == 'Però, "Trevi"\nby night'
        assert (first.hashtags, first.shortcode) == (["trevi", "roma"], "abc")
        assert first.taken_at == second.taken_at == datetime(2020, 9, 13, 12, 26, 40, tzinfo=UTC)
        assert first.extra == {"id": "1", "likes": "5"}
        assert (second.caption, second.hashtags, second.extra) == ("<b>#Roma</b>\x07", ["roma"], {"id": "2"})
        assert first.problem is second.problem is None


@pytest.mark.parametrize("name", ["list.txt", "list.urls.gz", "list"])
def test_a_plain_list(name: str, tmp_path: Path) -> None:
    data = b"https://example.org/1.jpg\r\n\n# a remark\n  https://example.org/2.jpg  "
    put(tmp_path, {name: gzip.compress(data) if name.endswith(".gz") else data})
    assert [r.source_uri for r in read(tmp_path / name)] == [f"https://example.org/{i}.jpg" for i in (1, 2)]


def test_invalid_addresses_and_addresses_outside_the_web_are_rejected_records(tmp_path: Path) -> None:
    outside = [
        "/etc/passwd",
        "file:///etc/passwd",
        "s3://bucket/x",
        "../x.jpg",
        "C:\\x.jpg",
        "ftp://a.example/x",
        "~/x",
    ]
    invalid = ["", "nan", "https://", "https://a\x00b/\x00", "javascript:alert(1)", "x" * 20_000, "http:///x"]
    valid = ["HTTPS://A.example/x", "//a.example/y", " https://a.example/ü z.jpg "]
    put(tmp_path, {"urls.jsonl": "\n".join(json.dumps({"url": u}) for u in [*outside, *invalid, *valid]).encode()})
    found = read(tmp_path / "urls.jsonl")
    assert [r.problem for r in found] == ["outside_source"] * 7 + ["no_address"] * 7 + [None] * 3
    assert [r.source_uri for r in found[-3:]] == ["HTTPS://A.example/x", "https://a.example/y", valid[2].strip()]
    assert found[0].source_uri == f"{tmp_path}/urls.jsonl#row=1"


@pytest.mark.parametrize("name", ["image_url", "Image URL", "display_url", "src", "IMG_SRC", "photo_image_url"])
def test_the_column_of_addresses_is_recognised_by_name(name: str, tmp_path: Path) -> None:
    put(tmp_path, {"x.csv": f"thing,{name}\n5,https://a.example/1\n".encode()})
    (record,) = read(tmp_path / "x.csv")
    assert (record.source_uri, record.extra) == ("https://a.example/1", {"thing": "5"})


def test_the_column_of_addresses_can_be_named(tmp_path: Path) -> None:
    put(tmp_path, {"x.csv": b"url,Where it is\nhttps://a.example/1,https://a.example/2\n"})
    (record,) = read(tmp_path / "x.csv", "Where it is")
    assert (record.source_uri, record.extra) == ("https://a.example/2", {"url": "https://a.example/1"})
    with pytest.raises(SourceError, match=r"no column link \(found url, Where it is\); name it with --url-column"):
        read(tmp_path / "x.csv", "link")


def test_an_unmatched_quote_is_text_and_breaks_no_row(tmp_path: Path) -> None:
    lines = [f'{i},https://a.example/{i},"fine ""{i}"""' for i in range(3000)]
    lines[7] = '7,https://a.example/7,"never closed'
    lines.append('x,https://a.example/x,"nor at the end')
    put(tmp_path, {"x.csv": "\n".join(["id,url,caption", *[line.replace('"', "") if i > 7 else line
                                       for i, line in enumerate(lines[:-1])], lines[-1]]).encode()})  # fmt: skip
    found = read(tmp_path / "x.csv")
    assert [r.source_uri for r in found] == [f"https://a.example/{i}" for i in [*range(3000), "x"]]
    assert [found[i].caption for i in (6, 7, 8, 3000)] == ['fine "6"', '"never closed', "fine 8", '"nor at the end']


def test_huge_fields_zeros_and_invalid_bytes_affect_only_their_row(tmp_path: Path) -> None:
    rows = [
        b"https://a.example/1,ok",
        b"https://a.example/2," + b"x" * 3_000_000,
        b'https://a.example/3,"' + b"y" * 200_000 + b'"',
        b"https://a.example/4,\x00ok",
        b"https://a.example/x,\xff\xfe\x00\x81\x8d",
        b"https://a.example/5,a,b,c",
        b"https://a.example/6",
        b"",
    ]
    put(tmp_path, {"x.csv": b"url,caption\n" + b"\n".join(rows)})
    found = read(tmp_path / "x.csv")
    broken = "broken_metadata"
    assert [r.problem for r in found] == [None, broken, broken, None, broken, None, None]
    assert found[3].caption == "\0ok"
    assert "UTF-8" in str(found[4].problem_detail)
    assert found[5].extra == {"further_cells": ["b", "c"]}
    plan = write_plan(found, tmp_path / "plan.parquet", 4)
    assert plan.records_of(0)["caption"].to_pylist()[3] == "\0ok"


def test_broken_json_lines_are_rejected_records_and_the_others_are_kept(tmp_path: Path) -> None:
    good = b'{"url": "https://a.example/1"}'
    deep = b'{"url": "https://a.example/2", "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    number = b'{"url": "https://a.example/3", "x": ' + b"9" * 5_000 + b"}"
    less_deep = b'{"url": "https://a.example/4", "x": ' + b"[" * 500 + b"]" * 500 + b"}"
    lines = [b"{", good, b"\xff", b"[]", b"7", deep, number, less_deep, b'{"a": ' + b" " * 2_000_000 + b"}", good]
    put(tmp_path, {"x.jsonl": b"\n".join(lines)})
    found = read(tmp_path / "x.jsonl")
    broken = [i for i, r in enumerate(found) if r.problem == "broken_metadata"]
    assert (len(found), broken) == (10, [0, 2, 3, 4, 5, 8])
    assert found[6].extra == {}
    write_plan(found, tmp_path / "plan.parquet", 4)


def test_the_metadata_of_a_row_is_bounded(tmp_path: Path) -> None:
    row = {"url": "https://a.example/1", "caption": "c" * 500_000, "a": "x" * 100_000, "b": "kept",
           "c": {"deep": [1, None, {"er": float("nan")}]}, "tags": ["#t"] * 5_000}  # fmt: skip
    put(tmp_path, {"x.jsonl": json.dumps(row).encode()})
    (record,) = read(tmp_path / "x.jsonl")
    assert record.caption is not None
    assert len(record.caption) == 16_384
    assert record.extra == {"b": "kept", "c": {"deep": [1, None, {"er": None}]}}
    assert record.hashtags == ["t"] * 1_000


def test_values_of_any_parquet_type_are_kept(tmp_path: Path) -> None:
    day = date(2020, 9, 13)
    columns = {
        "url": ["https://a.example/1"],
        "jpg": pa.array([b"\xff" * 10]),
        "taken_at": pa.array([1_600_000_000_123_456_789], pa.timestamp("ns")),
        "tags": pa.array([["a", None, "#b"]]),
        "far": pa.array([10**18], pa.timestamp("us")),
        "day": pa.array([day]),
        "price": pa.array([None], pa.decimal128(5, 2)),
        "nested": pa.array([{"x": [1, 2], "when": day}]),
        "kind": pa.array(["cat"]).dictionary_encode(),
    }
    put(tmp_path, {"x.parquet": parquet(columns)})
    (record,) = read(tmp_path / "x.parquet")
    assert record.extra == {"day": "2020-09-13", "nested": {"x": [1, 2], "when": "2020-09-13"}, "kind": "cat"}
    assert record.hashtags == ["a", "b"]
    write_plan([record], tmp_path / "plan.parquet", 4)


UNUSABLE: dict[str, tuple[bytes, str]] = {
    "empty.csv": (b"", "empty; expected a line of column names"),
    "no-rows.csv": (b"url\n", "contains no readable row"),
    "no-names.csv": (b"https://a.example/1,x\n", "the first line contains an address"),
    "no-url.csv": (b"a,b\n1,2\n", "no column of addresses, such as url, .* \\(found a, b\\)"),
    "zeros.csv": (bytes(1000), "contains no readable row"),
    "page.csv": (b"<!DOCTYPE html><html><body>Login</body></html>", "a web page or XML"),
    "quote.csv": (b'"url\nx\n', "the line of column names cannot be read"),
    "long.csv": (b"x" * 3_000_000, "the line of column names cannot be read"),
    "broken.jsonl": (b"{\n[\n", "contains no readable row"),
    "no-url.jsonl": (b'{"a": 1}\n', "no column of addresses"),
    "empty.txt": (b"\n\n", "contains no readable row"),
    "no.parquet": (b"PAR1", "not a Parquet table"),
    "cut.parquet": (parquet({"url": ["https://a.example/1"] * 100})[:-30], "not a Parquet table"),
    "no-url.parquet": (parquet({"a": [1]}), "no column of addresses"),
    "greek.csv": ("url,caption\nhttps://a.example/1,Η Ακρόπολη".encode("cp1253"), "not UTF-8.*--set ingest.encoding="),
    "empty.parquet": (parquet({"url": pa.array([], pa.string())}), "contains no readable row"),
    "cut.csv.gz": (gzip.compress(b"url\nhttps://a.example/1\n")[:15], "cut off or damaged"),
    "cut.parquet.gz": (gzip.compress(parquet({"url": ["https://a.example/1"]}))[:100], "cut off or damaged"),
    "damaged.csv.gz": (b"\x1f\x8b\x08\0" + b"\xff" * 50, "cut off or damaged|contains no readable row"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_table_gives_an_error_of_one_line(name: str, tmp_path: Path) -> None:
    data, message = UNUSABLE[name]
    put(tmp_path, {name: data})
    with pytest.raises(SourceError, match=message) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(f"source {tmp_path / name}: ")
    assert "\n" not in str(caught.value)


def test_a_gzip_that_is_cut_off_gives_its_readable_rows_and_a_rejected_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(f"https://a.example/{i * 7919}\n" for i in range(100_000))
    put(tmp_path, {"x.txt.gz": gzip.compress(lines.encode())[:-100]})
    found = read(tmp_path / "x.txt.gz")
    assert len(found) > 99_000
    assert (found[-1].problem, found[-1].file_name) == ("truncated", "x.txt.gz")
    assert "is cut off or damaged after" in capsys.readouterr().out


def test_the_rows_after_a_broken_parquet_page_are_one_rejected_record(tmp_path: Path) -> None:
    column = [f"https://a.example/{i}" for i in range(4_000)]
    data = bytearray(parquet({"url": column}, row_group_size=2_000, use_dictionary=False, compression="zstd"))
    offset = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0).data_page_offset
    data[offset : offset + 60] = b"\xff" * 60
    put(tmp_path, {"x.parquet": bytes(data)})
    found = read(tmp_path / "x.parquet")
    assert [r.problem for r in found] == [None] * 2_000 + ["broken_metadata"]


def test_a_gzipped_parquet_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_DECOMPRESSED_BYTES", 100)
    put(tmp_path, {"x.parquet.gz": gzip.compress(parquet({"url": ["https://a.example/1"]}))})
    with pytest.raises(SourceError, match="more than 100 bytes once decompressed"):
        read(tmp_path / "x.parquet.gz")


def test_a_folder_of_tables_is_read_by_name_and_one_with_images_is_not(tmp_path: Path) -> None:
    put(tmp_path, {f"part-{i}.csv": f"url\nhttps://a.example/{i}\n".encode() for i in (2, 1)} | {"_SUCCESS": b""})
    assert [r.file_name for r in read(tmp_path)] == ["1", "2"]
    put(tmp_path, {"photo.jpg": b"x"})
    assert {r.file_name for r in read(tmp_path)} == {"_SUCCESS", "part-1.csv", "part-2.csv", "photo.jpg"}
    with pytest.raises(SourceError, match=r"contains no table; expected \.csv"):
        put(tmp_path / "none", {"photo.jpg": b"x"})
        list(read_records(str(tmp_path / "none"), "table"))
