"""A shard whose rewriting was interrupted between its tar and its rows is repaired by the next attempt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import IngestConfig
from pipeline.ingest import shard
from pipeline.ingest.forget.names import name_of_address, names_from
from pipeline.ingest.forget.removal import remove_from_shard
from pipeline.ingest.plan import write_plan
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.repeats import dedup
from pipeline.ingest.repeats.dedup import drop_repeats, find_repeats, known_images
from pipeline.ingest.shard import ShardTask, build_shard, rebuild_shard
from pipeline.paths import CrawlPaths
from pipeline.records import CrawlRecord
from pipeline.shards import read_shard
from pipeline.storage import LocalStorage, read_table
from tests.support.crawl_files import encoded, photograph

CONFIG = IngestConfig(image_size=16)
PATHS = CrawlPaths("c", "x")
UNREACHABLE = Rejected("unreachable", "no answer")


class Web:
    """A fake web of photographs, whose URLs end in the number of the photograph; URLs in `silent` do not answer."""

    def __init__(self) -> None:
        self.silent: set[str] = set()

    def download(self, addresses: Mapping[int, str], *_: object) -> Iterator[tuple[int, bytes | Rejected]]:
        for key, url in addresses.items():
            yield key, UNREACHABLE if url in self.silent else encoded(photograph(int(url.rpartition("/")[2])))


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    web = Web()
    monkeypatch.setattr(shard, "download", web.download)
    return web


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path / "workspace"))


def records(tmp_path: Path, *urls: str) -> pa.Table:
    return write_plan((CrawlRecord(url, url) for url in urls), tmp_path / "plan.parquet", len(urls)).records_of(0)


def outcomes(storage: LocalStorage, index: int) -> list[str]:
    """Return the status or reason of each record of a shard, and check that its tar agrees with its rows."""
    rows = read_table(storage, PATHS.rows(index)).to_pylist()
    accepted = [row["image_id"] for row in rows if row["status"] == "accepted"]
    assert [sample.image_id for sample in read_shard(storage, PATHS.shard(index))] == accepted
    return [row["reason"] or row["status"] for row in rows]


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_images_that_an_interrupted_attempt_left_in_the_tar_are_removed(
    web: Web, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = known_images(storage, [], CONFIG)
    plan = records(tmp_path, "http://a/1", "http://b/2")
    web.silent = {"http://b/2"}
    build_shard(ShardTask(storage, PATHS, CONFIG, known), 0, plan)
    web.silent = set()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shard, "write_table", killed)
        rebuild_shard(ShardTask(storage, PATHS, CONFIG, known), 0, plan)
    assert len(list(read_shard(storage, PATHS.shard(0)))) == 2
    web.silent = {"http://b/2"}
    assert rebuild_shard(ShardTask(storage, PATHS, CONFIG, known), 0, plan) == 0
    assert outcomes(storage, 0) == ["accepted", "unreachable"]


def test_a_retry_continues_where_the_dropping_of_repeats_was_interrupted(
    web: Web, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = known_images(storage, [], CONFIG)
    plans = [records(tmp_path, "http://a/1"), records(tmp_path, "http://b/1", "http://b/2")]
    web.silent = {"http://b/2"}
    for index, plan in enumerate(plans):
        build_shard(ShardTask(storage, PATHS, CONFIG, known), index, plan)
    repeats = find_repeats(storage, PATHS, 2, known, [], CONFIG)
    assert repeats["shard"].to_pylist() == [1]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dedup, "write_table", killed)
        drop_repeats(storage, PATHS, 1, repeats)
    web.silent = set()
    assert rebuild_shard(ShardTask(storage, PATHS, CONFIG, known), 1, plans[1]) == 1
    assert find_repeats(storage, PATHS, 2, known, [], CONFIG).equals(repeats)
    drop_repeats(storage, PATHS, 1, repeats)
    assert outcomes(storage, 0) == ["accepted"]
    assert outcomes(storage, 1) == ["duplicate", "accepted"]


def test_images_are_forgotten_where_the_dropping_of_repeats_was_interrupted(
    web: Web, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = known_images(storage, [], CONFIG)
    build_shard(ShardTask(storage, PATHS, CONFIG, known), 0, records(tmp_path, "http://a/1"))
    build_shard(
        ShardTask(storage, PATHS, CONFIG, known), 1, records(tmp_path, "http://b/1", "http://b/2", "http://b/3")
    )
    repeats = find_repeats(storage, PATHS, 2, known, [], CONFIG)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dedup, "write_table", killed)
        drop_repeats(storage, PATHS, 1, repeats)
    remove_from_shard(storage, PATHS, 1, names_from([name_of_address("http://b/2")]))
    drop_repeats(storage, PATHS, 1, repeats)
    assert outcomes(storage, 1) == ["duplicate", "forgotten", "accepted"]
