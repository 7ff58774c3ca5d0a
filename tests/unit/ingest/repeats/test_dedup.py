from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from pipeline.config import IngestConfig
from pipeline.errors import StorageError
from pipeline.ingest.plan import write_plan
from pipeline.ingest.repeats.dedup import drop_repeats, find_repeats, known_images
from pipeline.ingest.shard import ShardTask, build_shard
from pipeline.paths import CrawlPaths
from pipeline.records import Crawl, CrawlRecord
from pipeline.shards import read_shard
from pipeline.storage import LocalStorage, read_table
from tests.support.crawl_files import encoded, photograph

CONFIG = IngestConfig(image_size=64)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path / "workspace"))


def content(seed: float) -> bytes:
    """A photograph by its seed; a fractional part gives the same photograph in another quality, -1 an empty file."""
    if seed < 0:
        return b""
    return encoded(photograph(int(seed), 96, 96, details=24), quality=round(90 - 40 * (seed % 1)))


def build(
    storage: LocalStorage,
    folder: Path,
    crawl_id: str,
    shards: Sequence[Sequence[float]],
    earlier: Sequence[Crawl] = (),
    config: IngestConfig = CONFIG,
) -> Crawl:
    """Build a crawl of the photographs with these seeds, by shard; -1 is an empty file."""
    known = known_images(storage, earlier, config)
    paths = CrawlPaths("c", crawl_id)
    for index, seeds in enumerate(shards):
        records = []
        for i, seed in enumerate(seeds):
            path = folder / f"{crawl_id}-{index}-{i}.jpg"
            path.write_bytes(content(seed))
            records.append(CrawlRecord(str(path), path.name, fingerprint=path.name))
        plan = write_plan(records, folder / "plan.parquet", len(records))
        build_shard(ShardTask(storage, paths, config, known), index, plan.records_of(0))
    return Crawl(
        "c", crawl_id, len(shards), sum(map(len, shards)), 0, {}, 64, "", keep_duplicates=config.keep_duplicates
    )


def resolve(
    storage: LocalStorage, crawl: Crawl, earlier: Sequence[Crawl] = (), config: IngestConfig = CONFIG
) -> set[int]:
    """Drop the repeats of a crawl; return the shards that had any."""
    paths = CrawlPaths("c", crawl.crawl_id)
    known = known_images(storage, earlier, config)
    repeats = find_repeats(storage, paths, crawl.n_shards, known, earlier, config)
    shards = set(repeats["shard"].to_pylist())
    for index in shards:
        drop_repeats(storage, paths, index, repeats.filter(pc.field("shard") == index))
    return shards


def outcomes(storage: LocalStorage, crawl: Crawl) -> list[list[str]]:
    """Return the status or reason of each record, by shard, and check that rows and tars agree."""
    paths = CrawlPaths("c", crawl.crawl_id)
    found = []
    for index in range(crawl.n_shards):
        rows = read_table(storage, paths.rows(index)).to_pylist()
        accepted = [row["image_id"] for row in rows if row["status"] == "accepted"]
        assert accepted == [sample.image_id for sample in read_shard(storage, paths.shard(index))]
        assert len(set(accepted)) == len(accepted)
        for row in rows:
            assert (row["reason"] is None) == (row["status"] == "accepted") == (row["image_id"] is not None)
            assert (row["duplicate_of"] is not None) == (row["reason"] in {"duplicate", "near_duplicate"})
            assert (row["format"] is None) == (row["width"] is None) == (row["image_id"] is None)
        found.append([row["reason"] or row["status"] for row in rows])
    return found


def test_a_repeat_within_a_shard_is_kept_once(storage: LocalStorage, tmp_path: Path) -> None:
    crawl = build(storage, tmp_path, "x", [[1, 1, 2, 1]])
    assert outcomes(storage, crawl) == [["accepted", "duplicate", "accepted", "duplicate"]]
    assert resolve(storage, crawl) == set()


def test_the_first_in_plan_order_is_kept_across_shards(storage: LocalStorage, tmp_path: Path) -> None:
    crawl = build(storage, tmp_path, "x", [[1, 2], [3, 1], [2, 1, 4]])
    assert resolve(storage, crawl) == {1, 2}
    kept, repeat = "accepted", "duplicate"
    assert outcomes(storage, crawl) == [[kept, kept], [kept, repeat], [repeat, repeat, kept]]


def test_files_that_are_no_images_are_not_called_repeats(storage: LocalStorage, tmp_path: Path) -> None:
    crawl = build(storage, tmp_path, "x", [[-1, -1], [-1]])
    assert resolve(storage, crawl) == set()
    assert outcomes(storage, crawl) == [["empty", "empty"], ["empty"]]


def test_what_an_earlier_crawl_has_is_not_decoded_again(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = build(storage, tmp_path, "a", [[1], [2]])
    monkeypatch.setattr("pipeline.ingest.shard.decode_square", lambda *_: pytest.fail("decoded"))
    crawl = build(storage, tmp_path, "b", [[2, 1], [2]], [earlier])
    assert outcomes(storage, crawl) == [["duplicate", "duplicate"], ["duplicate"]]
    assert resolve(storage, crawl, [earlier]) == set()


def test_a_crawl_completed_since_the_shards_were_built_counts_as_earlier(storage: LocalStorage, tmp_path: Path) -> None:
    shards = [[2, 3], [2, 1]]
    crawl = build(storage, tmp_path, "b", shards)
    earlier = build(storage, tmp_path, "a", [[1], [2]])
    resolve(storage, crawl, [earlier])
    assert outcomes(storage, crawl) == [["duplicate", "accepted"], ["duplicate", "duplicate"]]
    assert outcomes(storage, earlier) == [["accepted"], ["accepted"]]

    after = build(storage, tmp_path, "b", shards, [earlier])
    assert resolve(storage, after, [earlier]) == set()
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
    assert resolve(storage, build(storage, tmp_path, "b", [[1]]), [earlier]) == set()


def test_an_interruption_after_the_tar_is_repaired_by_the_next_run(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crawl = build(storage, tmp_path, "x", [[1, 2], [2, 3]])
    uninterrupted = LocalStorage(str(tmp_path / "other"))
    resolve(uninterrupted, build(uninterrupted, tmp_path, "x", [[1, 2], [2, 3]]))

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingest.repeats.dedup.write_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            resolve(storage, crawl)
    resolve(storage, crawl)
    assert outcomes(storage, crawl) == [["accepted", "accepted"], ["duplicate", "accepted"]]
    for key in uninterrupted.list("c"):
        assert storage.read_bytes(key) == uninterrupted.read_bytes(key)
    assert resolve(storage, crawl) == set()


def originals(storage: LocalStorage, crawl: Crawl) -> list[str]:
    """The images that the near-duplicates of a crawl name as their originals, in order."""
    tables = [read_table(storage, CrawlPaths("c", crawl.crawl_id).rows(i)) for i in range(crawl.n_shards)]
    rows = [row for table in tables for row in table.to_pylist()]
    return [row["duplicate_of"] for row in rows if row["reason"] == "near_duplicate"]


def image_id(seed: float) -> str:
    return hashlib.sha256(content(seed)).hexdigest()[:20]


def test_of_images_that_look_the_same_the_first_is_kept_and_named(storage: LocalStorage, tmp_path: Path) -> None:
    crawl = build(storage, tmp_path, "x", [[1, 2.3], [1.5, 3], [2, 1]])
    resolve(storage, crawl)
    kept, near = "accepted", "near_duplicate"
    assert outcomes(storage, crawl) == [[kept, kept], [near, kept], [near, "duplicate"]]
    assert originals(storage, crawl) == [image_id(1), image_id(2.3)]
    assert resolve(storage, crawl) == set()


def test_an_image_that_looks_like_one_of_an_earlier_crawl_names_it(storage: LocalStorage, tmp_path: Path) -> None:
    earlier = build(storage, tmp_path, "a", [[1]])
    crawl = build(storage, tmp_path, "b", [[1.5, 2]], [earlier])
    resolve(storage, crawl, [earlier])
    assert outcomes(storage, crawl) == [["near_duplicate", "accepted"]]
    assert originals(storage, crawl) == [image_id(1)]


def test_reposts_are_kept_on_request_but_no_file_of_an_earlier_crawl_twice(
    storage: LocalStorage, tmp_path: Path
) -> None:
    keep = IngestConfig(image_size=64, keep_duplicates=True)
    shards: list[list[float]] = [[1, 1, 1.5], [1]]
    crawl = build(storage, tmp_path, "x", shards, config=keep)
    assert resolve(storage, crawl, config=keep) == set()
    assert outcomes(storage, crawl) == [["accepted"] * 3, ["accepted"]]

    for path in tmp_path.glob("x-*.jpg"):
        path.rename(tmp_path / path.name.replace("x", "y"))
    paths = [path.name for path in sorted(tmp_path.glob("y-*.jpg"))]
    again = write_plan(
        [CrawlRecord(str(tmp_path / name), name, fingerprint=name.replace("y", "x")) for name in paths],
        tmp_path / "plan.parquet",
        4,
    )
    known = known_images(storage, [crawl], keep)
    assert build_shard(ShardTask(storage, CrawlPaths("c", "y"), keep, known), 0, again.records_of(0)) == 0


def test_a_copy_of_a_near_duplicate_names_the_image_that_is_kept(storage: LocalStorage, tmp_path: Path) -> None:
    made: dict[str, list[list[float]]] = {"x": [[1], [1.5], [1.5, 2]], "y": [[1, 1.5, 1.5, 2]]}
    for crawl_id, shards in made.items():
        crawl = build(storage, tmp_path, crawl_id, shards)
        resolve(storage, crawl)
        kept, near, copy = "accepted", "near_duplicate", "duplicate"
        assert [name for shard in outcomes(storage, crawl) for name in shard] == [kept, near, copy, kept]
        tables = [read_table(storage, CrawlPaths("c", crawl_id).rows(i)) for i in range(crawl.n_shards)]
        named = [name for table in tables for name in table["duplicate_of"].to_pylist()]
        assert named == [None, image_id(1), image_id(1), None]


def test_a_shard_that_lost_an_image_is_refused(storage: LocalStorage, tmp_path: Path) -> None:
    crawl = build(storage, tmp_path, "x", [[1], [2, 1]])
    paths = CrawlPaths("c", "x")
    storage.write_bytes(paths.shard(1), storage.read_bytes(paths.shard(0)))
    with pytest.raises(StorageError, match=f"image {image_id(2)} is missing, although its row is accepted; delete"):
        resolve(storage, crawl)


def test_what_looked_like_a_kept_image_is_known_in_later_crawls(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = build(storage, tmp_path, "a", [[1, 1.5]])
    resolve(storage, earlier)
    monkeypatch.setattr("pipeline.ingest.shard.decode_square", lambda *_: pytest.fail("decoded"))
    crawl = build(storage, tmp_path, "b", [[1.5]], [earlier])
    (row,) = read_table(storage, CrawlPaths("c", "b").rows(0)).to_pylist()
    assert (row["reason"], row["duplicate_of"]) == ("duplicate", image_id(1))
    assert resolve(storage, crawl, [earlier]) == set()
