from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import IngestConfig
from pipeline.errors import ConfigError
from pipeline.ingest.forget.names import (
    NO_NAMES,
    are_forgotten,
    clear_forgotten,
    cleared,
    is_forgotten,
    names_from,
    read_entries,
    read_forgotten,
    write_forgotten,
)
from pipeline.ingest.forget.removal import write_without
from pipeline.ingest.plan import write_plan
from pipeline.ingest.repeats.dedup import KNOWN
from pipeline.ingest.shard import ShardTask, build_shard
from pipeline.paths import CrawlPaths, forgotten_list
from pipeline.records import PLAN_SCHEMA, SHARD_SCHEMA, CrawlRecord
from pipeline.shards import read_shard
from pipeline.storage import LocalStorage, read_table
from tests.support.crawl_files import encoded, photograph

SHA256 = "ab" * 32
URL = "https://cdn.example/a.jpg"
URL_NAME = hashlib.sha256(URL.encode()).hexdigest()


def entries(folder: Path, text: str) -> dict[str, int]:
    file = folder / "unwanted.txt"
    file.write_text(text, encoding="utf-8")
    return read_entries(file)


def test_a_list_names_images_by_id_by_content_and_by_address(tmp_path: Path) -> None:
    text = f"\ufeff# asked for on Monday\n#\n\n{SHA256[:20].upper()}\r\n {SHA256} \n{URL}\n/photos/a b.jpg\ns3://b/k\n{URL}"
    named = entries(tmp_path, text)
    assert list(named.values()) == [4, 5, 6, 7, 8]
    assert list(named)[:3] == [SHA256[:20], SHA256, URL_NAME]


def test_an_address_is_the_same_with_and_without_a_password(tmp_path: Path) -> None:
    assert list(entries(tmp_path, "https://me:secret@cdn.example/a.jpg")) == [URL_NAME]


@pytest.mark.parametrize("line", ["#comment", SHA256[:19], SHA256 + "0", "ftp://host/a", "photos/a.jpg", "https://"])
def test_anything_else_is_refused_by_its_line(line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unwanted\.txt, line 2: expected an image id"):
        entries(tmp_path, f"{URL}\n{line}\n")


@pytest.mark.parametrize("text", ["", "# nothing\n\n"])
def test_a_list_that_names_nothing_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no image"):
        entries(tmp_path, text)


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.txt: No such file"):
        read_entries(tmp_path / "gone.txt")


def test_the_stored_list_reveals_nothing_of_the_image(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path / "workspace"))
    assert read_forgotten(storage, "c").tolist() == []
    write_forgotten(storage, "c", names_from(entries(tmp_path, f"{URL}\n{SHA256}")))
    assert read_forgotten(storage, "c").tolist() == sorted([SHA256.encode(), URL_NAME.encode()])
    assert read_table(storage, forgotten_list("c"))["name"].to_pylist() == sorted([SHA256, URL_NAME])


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), SHARD_SCHEMA)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"image_id": "0" * 20}, "0" * 20),
        ({"duplicate_of": "0" * 20}, "0" * 20),
        ({"sha256": SHA256}, SHA256),
        ({"sha256": SHA256}, SHA256[:20]),
        ({"source_uri": URL}, URL_NAME),
        ({"source_url": "https://me:secret@cdn.example/a.jpg"}, URL_NAME),
    ],
)
def test_a_row_is_found_by_each_of_its_names(row: dict[str, Any], name: str) -> None:
    rows = table({"image_id": "f" * 20, "source_uri": "/a.jpg"}, row, {})
    assert are_forgotten(rows, names_from([name, "1" * 20, "e" * 64])).tolist() == [False, True, False]
    assert not are_forgotten(rows, names_from(["1" * 20])).any()
    assert not are_forgotten(rows, NO_NAMES).any()


def test_content_is_known_by_its_hash_and_by_the_id_that_it_would_get() -> None:
    for name in (SHA256, SHA256[:20], "0" * 20):
        assert is_forgotten(names_from([name]), SHA256, "0" * 20)
    assert not is_forgotten(names_from(["1" * 20]), SHA256, "0" * 20)
    assert not is_forgotten(NO_NAMES, SHA256, "0" * 20)


def test_of_a_forgotten_row_only_its_position_stays() -> None:
    row = {
        name: {"hashtags": ["a"], "taken_at": None, "look": b"x"}.get(name, "x" if kind == pa.string() else 1)
        for name, kind in zip(SHARD_SCHEMA.names, SHARD_SCHEMA.types, strict=True)
    }
    first, second = cleared(table(row, {**row, "record": 2}), np.array([False, True])).to_pylist()
    assert first == row
    left = {name: value for name, value in second.items() if value is not None}
    assert left.pop("detail")
    assert left == {"record": 2, "status": "rejected", "reason": "forgotten"}


def records() -> list[CrawlRecord]:
    names = ("a", "b", "c")
    return [
        CrawlRecord(
            f"https://me:secret@cdn.example/{name}.jpg", f"{name}.jpg", caption=f"says {name}", fingerprint=name
        )
        for name in names
    ]


def test_a_plan_has_the_position_of_a_forgotten_address_and_the_same_digest(tmp_path: Path) -> None:
    plain = write_plan(records(), tmp_path / "plain.parquet", 2)
    plan = write_plan(
        records(), tmp_path / "plan.parquet", 2, lambda rows: clear_forgotten(rows, names_from([URL_NAME]))
    )
    assert plan.listing_digest == plain.listing_digest
    first, second = plan.records_of(0).to_pylist()
    assert {name: value for name, value in first.items() if value is not None} == {
        "record": 0,
        "problem": "forgotten",
        "problem_detail": first["problem_detail"],
    }
    assert second == plain.records_of(0).to_pylist()[1]


def test_a_plan_is_written_again_without_records_and_addresses(tmp_path: Path) -> None:
    plain = write_plan(records(), tmp_path / "plain.parquet", 2)
    removed = write_without(plain.path, tmp_path / "plan.parquet", [2], names_from([URL_NAME]))
    assert URL_NAME in removed
    before, after = (pq.ParquetFile(tmp_path / name) for name in ("plain.parquet", "plan.parquet"))
    assert after.schema_arrow.equals(PLAN_SCHEMA)
    assert after.metadata.metadata[b"records_per_shard"] == before.metadata.metadata[b"records_per_shard"]
    assert after.read()["caption"].to_pylist() == [None, "says b", None]
    assert after.read()["record"].to_pylist() == [0, 1, 2]


def test_forgotten_content_is_not_decoded_and_leaves_only_its_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ingest.shard.decode_square", lambda *_: pytest.fail("decoded"))
    content = encoded(photograph(1))
    (tmp_path / "a.jpg").write_bytes(content)
    plan = write_plan(
        [CrawlRecord(str(tmp_path / "a.jpg"), "a.jpg", caption="x", hashtags=["x"], fingerprint="a")],
        tmp_path / "plan.parquet",
        1,
    )
    storage, paths = LocalStorage(str(tmp_path / "workspace")), CrawlPaths("c", "x")
    names = names_from([hashlib.sha256(content).hexdigest()])
    build_shard(
        ShardTask(storage, paths, IngestConfig(image_size=16), np.empty(0, KNOWN), forgotten=names),
        0,
        plan.records_of(0),
    )
    (row,) = read_table(storage, paths.rows(0)).to_pylist()
    kept = {name for name, value in row.items() if value is not None}
    assert (kept, row["reason"]) == ({"record", "status", "reason", "detail"}, "forgotten")
    assert not list(read_shard(storage, paths.shard(0)))
