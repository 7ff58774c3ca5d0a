from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.config import IngestConfig
from pipeline.ingest.dedup import drop_repeats, find_repeats
from pipeline.ingest.plan import write_plan
from pipeline.ingest.shard import build_shard
from pipeline.layout import CrawlPaths
from pipeline.records import Crawl, CrawlRecord
from pipeline.shards import read_shard
from pipeline.storage import LocalStorage, read_table
from tests.crawl_files import encoded, photograph

CONFIG = IngestConfig(image_size=16)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path / "workspace"))


def build(storage: LocalStorage, folder: Path, crawl_id: str, shards: Sequence[Sequence[int]]) -> Crawl:
    """A crawl whose shards hold the photographs of these seeds; -1 is an empty file."""
    paths = CrawlPaths("c", crawl_id)
    for index, seeds in enumerate(shards):
        records = []
        for i, seed in enumerate(seeds):
            path = folder / f"{crawl_id}-{index}-{i}.jpg"
            path.write_bytes(encoded(photograph(seed)) if seed >= 0 else b"")
            records.append(CrawlRecord(str(path), path.name))
        plan = write_plan(records, folder / "plan.parquet", len(records))
        build_shard(storage, paths, index, plan.records_of(0), CONFIG)
    return Crawl("c", crawl_id, len(shards), sum(map(len, shards)), 0, {}, 16, "")


def resolve(storage: LocalStorage, crawl: Crawl, earlier: Sequence[Crawl] = ()) -> dict[int, set[str]]:
    paths = CrawlPaths("c", crawl.crawl_id)
    repeats = find_repeats(storage, paths, crawl.n_shards, earlier, crawl.image_size)
    for index, ids in repeats.items():
        drop_repeats(storage, paths, index, ids)
    return repeats


def outcomes(storage: LocalStorage, crawl: Crawl) -> list[list[str]]:
    """Status or reason per record, by shard; checks that rows and tars agree."""
    paths = CrawlPaths("c", crawl.crawl_id)
    found = []
    for index in range(crawl.n_shards):
        rows = read_table(storage, paths.rows(index)).to_pylist()
        accepted = [row["image_id"] for row in rows if row["status"] == "accepted"]
        assert accepted == [sample.image_id for sample in read_shard(storage, paths.shard(index))]
        assert len(set(accepted)) == len(accepted)
        for row in rows:
            assert (row["reason"] is None) == (row["status"] == "accepted") == (row["image_id"] is not None)
            assert row["duplicate_of"] == (row["sha256"][:20] if row["reason"] == "duplicate" else None)
        found.append([row["reason"] or row["status"] for row in rows])
    return found


def test_a_repeat_within_a_shard_is_kept_once(storage: LocalStorage, tmp_path: Path) -> None:
    crawl = build(storage, tmp_path, "x", [[1, 1, 2, 1]])
    assert outcomes(storage, crawl) == [["accepted", "duplicate", "accepted", "duplicate"]]
    assert resolve(storage, crawl) == {}


def test_the_first_in_plan_order_is_kept_across_shards(storage: LocalStorage, tmp_path: Path) -> None:
    crawl = build(storage, tmp_path, "x", [[1, 2], [3, 1], [2, 1, 4]])
    assert set(resolve(storage, crawl)) == {1, 2}
    kept, repeat = "accepted", "duplicate"
    assert outcomes(storage, crawl) == [[kept, kept], [kept, repeat], [repeat, repeat, kept]]


def test_files_that_are_no_images_are_not_called_repeats(storage: LocalStorage, tmp_path: Path) -> None:
    crawl = build(storage, tmp_path, "x", [[-1, -1], [-1]])
    assert resolve(storage, crawl) == {}
    assert outcomes(storage, crawl) == [["empty", "empty"], ["empty"]]


def test_what_an_earlier_crawl_has_is_not_kept_again(storage: LocalStorage, tmp_path: Path) -> None:
    earlier = build(storage, tmp_path, "a", [[1], [2]])
    crawl = build(storage, tmp_path, "b", [[2, 3], [2, 1]])
    resolve(storage, crawl, [earlier])
    assert outcomes(storage, crawl) == [["duplicate", "accepted"], ["duplicate", "duplicate"]]
    assert outcomes(storage, earlier) == [["accepted"], ["accepted"]]


def test_an_earlier_crawl_of_another_size_has_other_images(storage: LocalStorage, tmp_path: Path) -> None:
    earlier = Crawl(**{**vars(build(storage, tmp_path, "a", [[1]])), "image_size": 32})
    assert resolve(storage, build(storage, tmp_path, "b", [[1]]), [earlier]) == {}


def test_an_interruption_after_the_tar_is_mended_by_the_next_run(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crawl = build(storage, tmp_path, "x", [[1, 2], [2, 3]])
    uninterrupted = LocalStorage(str(tmp_path / "other"))
    resolve(uninterrupted, build(uninterrupted, tmp_path, "x", [[1, 2], [2, 3]]))

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingest.dedup.write_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            resolve(storage, crawl)
    resolve(storage, crawl)
    assert outcomes(storage, crawl) == [["accepted", "accepted"], ["duplicate", "accepted"]]
    for key in uninterrupted.list("c"):
        assert storage.read_bytes(key) == uninterrupted.read_bytes(key)
    assert resolve(storage, crawl) == {}
