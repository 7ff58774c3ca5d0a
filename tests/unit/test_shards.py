from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import StorageError
from pipeline.shards import Sample, read_shard, write_shard
from pipeline.storage import LocalStorage
from tests.crawl_files import encoded, photograph

SAMPLES = [
    Sample("0a", encoded(photograph(1)), {"caption": "#Trevi ☃ \\ud800 </script>", "hashtags": ["a"], "width": 3}),
    Sample("0b", encoded(photograph(2)), {}),
]


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard.tar", SAMPLES)
    read = list(read_shard(LocalStorage(str(tmp_path)), "shard.tar"))
    assert read == SAMPLES
    pixels = read[0].pixels()
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - np.asarray(photograph(1))).mean() < 12


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, iter(SAMPLES))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_an_empty_shard_is_a_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard.tar", [])
    assert list(read_shard(LocalStorage(str(tmp_path)), "shard.tar")) == []


def test_a_shard_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*none\.tar"):
        list(read_shard(LocalStorage(str(tmp_path)), "none.tar"))


@pytest.mark.parametrize("length", range(0, 5500, 250))
def test_a_shard_that_is_cut_off_is_a_storage_error(length: int, tmp_path: Path) -> None:
    write_shard(tmp_path / "shard.tar", SAMPLES)
    with (tmp_path / "shard.tar").open("r+b") as file:
        file.truncate(length)
    with pytest.raises(StorageError, match=r"shard\.tar"):
        list(read_shard(LocalStorage(str(tmp_path)), "shard.tar"))
