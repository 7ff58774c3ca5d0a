from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import IngestConfig, SourceType
from pipeline.errors import SourceError
from pipeline.ingest.plan import draw_sample, write_plan
from pipeline.ingest.repeats.dedup import KNOWN
from pipeline.ingest.shard import ShardTask, build_shard
from pipeline.ingest.sources.detect import count_candidates, read_records
from pipeline.paths import CrawlPaths
from pipeline.records import CrawlRecord
from pipeline.shards import read_shard
from pipeline.storage import LocalStorage, read_table
from tests.support.array_files import idx
from tests.support.crawl_files import encoded, photograph

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 28, 28)).astype(np.uint8)
IMAGES[3] = IMAGES[0]
LABELS = np.array([5, 0, 4, 5], np.uint8)
GREY = IngestConfig(image_size=28, color_mode="grayscale", image_format="png")
MNIST_TEST = Path(__file__).parents[5] / "shared" / "data" / "mnist-test"


def write_pair(folder: Path, prefix: str, images: bytes = idx(IMAGES), labels: bytes | None = idx(LABELS)) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
    if labels is not None:
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)


def refused(source: Path, source_type: SourceType = "auto") -> str:
    with pytest.raises(SourceError) as caught:
        list(read_records(str(source), source_type))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def labels_of(source: Path, source_type: SourceType = "auto") -> list[str | None]:
    return [record.label for record in read_records(str(source), source_type)]


def test_a_folder_of_idx_files_is_recognised_and_read_by_name(tmp_path: Path) -> None:
    write_pair(tmp_path, "train")
    write_pair(tmp_path, "t10k", idx(IMAGES[1:]), idx(LABELS[1:]))
    (tmp_path / "notes.txt").write_text("not a record")
    records = list(read_records(str(tmp_path)))
    assert [r.label for r in records] == ["0", "4", "5", "5", "0", "4", "5"]
    assert records[0].file_name == "t10k-images-idx3-ubyte#0"
    assert records[6].source_uri == f"{tmp_path}/train-images-idx3-ubyte#3"
    assert labels_of(tmp_path / "train-images-idx3-ubyte") == ["5", "0", "4", "5"]
    assert count_candidates(str(tmp_path), 5) == 5


def test_files_that_exist_gzipped_and_uncompressed_are_read_once(tmp_path: Path) -> None:
    write_pair(tmp_path, "train")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
    assert len(labels_of(tmp_path)) == 4
    (tmp_path / "train-images-idx3-ubyte").unlink()
    assert len(labels_of(tmp_path)) == 4
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.with_suffix(".gz").write_bytes(gzip.compress(labels.read_bytes()))
    labels.unlink()
    assert len(labels_of(tmp_path)) == 4


def test_idx_files_without_labels_are_plain_files_unless_the_type_is_given(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", labels=None)
    assert [r.file_name for r in read_records(str(tmp_path))] == ["train-images-idx3-ubyte"]
    assert "its labels are missing; expected train-labels-idx1-ubyte beside it" in refused(tmp_path, "idx")


def test_the_numbers_of_images_and_labels_must_be_equal(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", labels=idx(LABELS[:3]))
    message = "train-labels-idx1-ubyte: 4 images, but 3 labels; expected one label per image"
    assert message in refused(tmp_path)
    np.savez(tmp_path / "x.npz", images=IMAGES, labels=LABELS[:3])
    assert "x.npz: 4 images, but 3 labels" in refused(tmp_path / "x.npz")


def test_sources_of_another_type_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file.jpg").write_bytes(b"")
    assert "no IDX file of images, such as" in refused(tmp_path, "idx")
    assert "expected a file name such as train-images-idx3-ubyte.gz" in refused(tmp_path / "file.jpg", "idx")
    assert "No such file" in refused(tmp_path / "none", "idx")
    assert "expected an .npz file with the arrays" in refused(tmp_path, "npz")
    assert "expected an .npz file with the arrays" in refused(tmp_path / "file.jpg", "npz")
    assert "no such file or folder" in refused(tmp_path / "none.npz")
    assert "expected a folder, found a file" in refused(tmp_path / "file.jpg", "class-folders")
    assert "expected one subfolder per class" in refused(tmp_path, "class-folders")


def test_npz_labels_are_optional(tmp_path: Path) -> None:
    np.savez(tmp_path / "with.npz", images=IMAGES, labels=np.array(["a", "b", "", "a"]))
    np.savez(tmp_path / "without.npz", images=IMAGES)
    assert labels_of(tmp_path / "with.npz") == ["a", "b", None, "a"]
    assert labels_of(tmp_path / "without.npz") == [None] * 4


def test_the_name_of_a_class_folder_is_the_label_of_all_files_below_it(tmp_path: Path) -> None:
    for name in ("stray.jpg", "cat/1.jpg", "cat/deep/2.jpg", "dog/3.jpg", "dog/clip.mp4"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    records = [(r.file_name, r.label) for r in read_records(str(tmp_path), "class-folders")]
    expected = [("stray.jpg", None), ("1.jpg", "cat"), ("2.jpg", "cat"), ("3.jpg", "dog"), ("clip.mp4", "dog")]
    assert records == expected
    assert labels_of(tmp_path) == [None] * 5


def listing(source: Path, folder: Path, source_type: SourceType = "auto") -> str:
    return write_plan(read_records(str(source), source_type), folder / "plan.parquet", 3).listing_digest


def test_the_listing_digest_depends_on_content_and_labels_but_not_on_location_or_time(tmp_path: Path) -> None:
    write_pair(tmp_path / "a", "train")
    write_pair(tmp_path / "b", "train")
    first = listing(tmp_path / "a", tmp_path)
    assert listing(tmp_path / "b", tmp_path) == first
    write_pair(tmp_path / "b", "train", labels=idx(LABELS[::-1].copy()))
    assert listing(tmp_path / "b", tmp_path) != first
    write_pair(tmp_path / "a", "train", images=idx(IMAGES[::-1].copy()))
    assert listing(tmp_path / "a", tmp_path) != first


def built(source: Path, folder: Path, config: IngestConfig) -> tuple[list[np.ndarray], list[dict[str, object]], bytes]:
    """Build the single shard of `source`; return its pixels, its rows and its tar."""
    storage, paths = LocalStorage(str(folder / "workspace")), CrawlPaths("c", "x")
    plan = write_plan(read_records(str(source), config.source_type), folder / "plan.parquet", 100)
    build_shard(ShardTask(storage, paths, config, np.empty(0, KNOWN)), 0, plan.records_of(0))
    pixels = [sample.pixels() for sample in read_shard(storage, paths.shard(0))]
    return pixels, read_table(storage, paths.rows(0)).to_pylist(), storage.read_bytes(paths.shard(0))


def test_every_image_of_an_array_is_kept_with_its_label_and_pixels(tmp_path: Path) -> None:
    write_pair(tmp_path / "mnist", "train")
    pixels, rows, tar = built(tmp_path / "mnist", tmp_path, GREY)
    assert np.array_equal(np.stack(pixels), IMAGES[..., None])
    assert [row["label"] for row in rows] == ["5", "0", "4", "5"]
    assert len({row["image_id"] for row in rows}) == 4, "the first and the last image are equal, and both must be kept"
    assert {(row["format"], row["bytes"], row["width"]) for row in rows} == {("IDX", 784, 28)}
    assert built(tmp_path / "mnist", tmp_path, GREY)[2] == tar


def test_labels_of_class_folders_reach_rows_and_shard(tmp_path: Path) -> None:
    for seed, name in enumerate(("cat/1.png", "dog/2.png", "dog/again.png")):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photograph(min(seed, 1)), "PNG"))
    config = IngestConfig(image_size=16, source_type="class-folders")
    _, rows, _ = built(tmp_path / "pets", tmp_path, config)
    assert [(row["label"], row["status"]) for row in rows] == [
        ("cat", "accepted"),
        ("dog", "accepted"),
        ("dog", "rejected"),
    ]
    storage = LocalStorage(str(tmp_path / "workspace"))
    samples = read_shard(storage, CrawlPaths("c", "x").shard(0))
    assert [sample.metadata["label"] for sample in samples] == ["cat", "dog"]


@pytest.mark.skipif(not MNIST_TEST.exists(), reason=f"{MNIST_TEST} does not exist")
def test_mnist_digits_are_stored_exactly(tmp_path: Path) -> None:
    with gzip.open(MNIST_TEST / "t10k-images-idx3-ubyte.gz") as file:
        file.read(16)
        first = np.frombuffer(file.read(100 * 784), np.uint8).reshape(100, 28, 28, 1)
    records = list(read_records(str(MNIST_TEST)))
    assert len(records) == 10_000
    assert [r.label for r in records[:5]] == ["7", "2", "1", "0", "4"]
    storage, paths = LocalStorage(str(tmp_path)), CrawlPaths("c", "x")
    plan = write_plan(records[:100], tmp_path / "plan.parquet", 100)
    build_shard(ShardTask(storage, paths, GREY, np.empty(0, KNOWN)), 0, plan.records_of(0))
    assert np.array_equal(np.stack([s.pixels() for s in read_shard(storage, paths.shard(0))]), first)


def numbered(n: int) -> list[CrawlRecord]:
    return [CrawlRecord(str(i), str(i)) for i in range(n)]


def test_a_sample_is_random_but_sorted_and_reproducible() -> None:
    drawn = [int(r.file_name) for r in draw_sample(iter(numbered(1000)), 100, seed=0)]
    assert drawn == sorted(set(drawn))
    assert drawn == [int(r.file_name) for r in draw_sample(numbered(1000), 100, seed=0)]
    assert drawn != [int(r.file_name) for r in draw_sample(numbered(1000), 100, seed=1)]
    assert 400 < np.mean(drawn) < 600
    assert len(draw_sample(numbered(5), 5, seed=0)) == 5


def test_a_sample_larger_than_the_source_is_refused() -> None:
    with pytest.raises(SourceError, match="6 is above the 5 records of the source; omit it to ingest all records"):
        draw_sample(numbered(5), 6, seed=0)
