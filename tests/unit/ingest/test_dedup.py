from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import IngestConfig
from pipeline.errors import StorageError
from pipeline.ingest.dedup import drop_repeats, find_repeats, known_files
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


def build(
    storage: LocalStorage,
    folder: Path,
    crawl_id: str,
    shards: Sequence[Sequence[int]],
    earlier: Sequence[Crawl] = (),
) -> Crawl:
    """A crawl whose shards hold the photographs of these seeds; -1 is an empty file."""
    known = known_files(storage, earlier, CONFIG.image_form)
    paths = CrawlPaths("c", crawl_id)
    for index, seeds in enumerate(shards):
        records = []
        for i, seed in enumerate(seeds):
            path = folder / f"{crawl_id}-{index}-{i}.jpg"
            path.write_bytes(encoded(photograph(seed)) if seed >= 0 else b"")
            records.append(CrawlRecord(str(path), path.name))
        plan = write_plan(records, folder / "plan.parquet", len(records))
        build_shard(storage, paths, index, plan.records_of(0), known, CONFIG)
    return Crawl("c", crawl_id, len(shards), sum(map(len, shards)), 0, {}, 16, "")


def resolve(storage: LocalStorage, crawl: Crawl, earlier: Sequence[Crawl] = ()) -> dict[int, set[str]]:
    paths = CrawlPaths("c", crawl.crawl_id)
    known = known_files(storage, earlier, crawl.image_form)
    repeats = find_repeats(storage, paths, crawl.n_shards, known)
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
            assert (row["format"] is None) == (row["width"] is None) == (row["image_id"] is None)
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


def test_what_an_earlier_crawl_has_is_not_decoded_again(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = build(storage, tmp_path, "a", [[1], [2]])
    monkeypatch.setattr("pipeline.ingest.shard.decode_square", lambda *_: pytest.fail("decoded"))
    crawl = build(storage, tmp_path, "b", [[2, 1], [2]], [earlier])
    assert outcomes(storage, crawl) == [["duplicate", "duplicate"], ["duplicate"]]
    assert resolve(storage, crawl, [earlier]) == {}


def test_a_crawl_completed_since_the_shards_were_built_counts_as_earlier(storage: LocalStorage, tmp_path: Path) -> None:
    shards = [[2, 3], [2, 1]]
    crawl = build(storage, tmp_path, "b", shards)
    earlier = build(storage, tmp_path, "a", [[1], [2]])
    resolve(storage, crawl, [earlier])
    assert outcomes(storage, crawl) == [["duplicate", "accepted"], ["duplicate", "duplicate"]]
    assert outcomes(storage, earlier) == [["accepted"], ["accepted"]]

    after = build(storage, tmp_path, "b", shards, [earlier])
    assert resolve(storage, after, [earlier]) == {}
    assert outcomes(storage, after) == outcomes(storage, crawl)


def test_a_lack_of_memory_ends_the_shard_and_rejects_nothing(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pipeline.ingest.shard.decode_square", fail)
    with pytest.raises(StorageError, match=r"cannot decode .*x-0-0\.jpg: this machine is out of memory"):
        build(storage, tmp_path, "x", [[1]])
    assert list(storage.list("")) == []


@pytest.mark.parametrize("other", [{"image_size": 32}, {"color_mode": "grayscale"}, {"image_format": "png"}])
def test_an_earlier_crawl_of_another_form_has_other_images(
    other: dict[str, Any], storage: LocalStorage, tmp_path: Path
) -> None:
    earlier = replace(build(storage, tmp_path, "a", [[1]]), **other)
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
