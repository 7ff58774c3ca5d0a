from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StorageError
from pipeline.layout import CrawlPaths
from pipeline.shards import Sample, complete_crawls, read_shard, write_shard
from pipeline.storage import LocalStorage
from tests.crawl_files import encoded, photograph

SAMPLES = [
    Sample("0a", encoded(photograph(1)), {"caption": "#Trevi ☃ \\ud800 </script>", "hashtags": ["a"], "width": 3}),
    Sample("0b", encoded(photograph(2)), {}),
    Sample("0c", encoded(photograph(3), "PNG"), {}, image_format="png"),
]


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard.tar", SAMPLES)
    read = list(read_shard(LocalStorage(str(tmp_path)), "shard.tar"))
    assert read == SAMPLES
    pixels = read[0].pixels()
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - np.asarray(photograph(1))).mean() < 12
    assert np.array_equal(read[2].pixels(), np.asarray(photograph(3)))


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, iter(SAMPLES))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_an_empty_shard_is_a_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard.tar", [])
    assert list(read_shard(LocalStorage(str(tmp_path)), "shard.tar")) == []


def test_a_shard_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    remedy = rf"delete the crawl folder {tmp_path}/c/crawls/x and run the same command again"
    with pytest.raises(StorageError, match=rf"shard-000001\.tar: missing, .*; {remedy}"):
        list(read_shard(LocalStorage(str(tmp_path)), CrawlPaths("c", "x").shard(1)))


def test_a_broken_image_is_a_storage_error_that_names_it(tmp_path: Path) -> None:
    storage, key = LocalStorage(str(tmp_path)), CrawlPaths("c", "x").shard(0)
    (tmp_path / key).parent.mkdir(parents=True)
    whole = SAMPLES[0].data
    write_shard(tmp_path / key, [Sample(name, data, {}) for name, data in [("0a", b"no"), ("0b", whole[:400])]])
    for sample in read_shard(storage, key):
        with pytest.raises(StorageError, match=rf"000000\.tar: {sample.image_id}\.jpg is broken .*; delete the crawl"):
            sample.pixels()
    for data in (b"no", whole, SAMPLES[2].data[:900]):
        with pytest.raises(StorageError, match=r"0c\.png is broken"):
            Sample("0c", data, {}, "shard", "png").pixels()


def test_a_crawl_json_without_its_fields_is_a_storage_error(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.write_bytes(CrawlPaths("c", "x").marker, b"{}")
    with pytest.raises(StorageError, match=r"x/crawl\.json: has no .*; delete the file and run the ingest stage again"):
        complete_crawls(storage, "c")


@pytest.mark.parametrize("length", range(0, 5500, 250))
def test_a_shard_that_is_cut_off_is_a_storage_error(length: int, tmp_path: Path) -> None:
    write_shard(tmp_path / "shard.tar", SAMPLES)
    with (tmp_path / "shard.tar").open("r+b") as file:
        file.truncate(length)
    with pytest.raises(StorageError, match=r"shard\.tar"):
        list(read_shard(LocalStorage(str(tmp_path)), "shard.tar"))
