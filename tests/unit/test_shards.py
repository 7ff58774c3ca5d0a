from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from pipeline.errors import StorageError
from pipeline.paths import CrawlPaths
from pipeline.shards import EXTENSIONS, Sample, complete_crawls, read_shard, write_shard
from pipeline.storage import LocalStorage
from tests.support.crawl_files import encoded, photograph

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


def test_webdataset_reads_shards_and_writes_the_same_bytes(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard.tar", SAMPLES)
    read = list(wds.WebDataset(str(tmp_path / "shard.tar"), shardshuffle=False, nodesplitter=None))
    with wds.TarWriter(str(tmp_path / "webdataset.tar"), mtime=0, user="", group="", mode=0o644) as writer:
        for sample, members in zip(SAMPLES, read, strict=True):
            image = {EXTENSIONS[sample.image_format]: sample.data}
            document = json.dumps(sample.metadata, ensure_ascii=False, sort_keys=True).encode()
            assert {**image, "json": document}.items() <= members.items()
            writer.write({"__key__": sample.image_id, **image, "json": document})
    assert (tmp_path / "shard.tar").read_bytes() == (tmp_path / "webdataset.tar").read_bytes()


def test_ingest_does_not_import_torch() -> None:
    script = "import sys, pipeline.ingest.stage; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_empty_shard_is_a_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard.tar", [])
    assert list(read_shard(LocalStorage(str(tmp_path)), "shard.tar")) == []


def test_a_missing_shard_is_a_storage_error(tmp_path: Path) -> None:
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
    with pytest.raises(
        StorageError, match=r"x/crawl\.json: the field .* is missing; delete the file and run the ingest stage again"
    ):
        complete_crawls(storage, "c")


@pytest.mark.parametrize("length", range(0, 5500, 250))
def test_a_shard_that_is_cut_off_is_a_storage_error(length: int, tmp_path: Path) -> None:
    write_shard(tmp_path / "shard.tar", SAMPLES)
    with (tmp_path / "shard.tar").open("r+b") as file:
        file.truncate(length)
    with pytest.raises(StorageError, match=r"shard\.tar"):
        list(read_shard(LocalStorage(str(tmp_path)), "shard.tar"))
