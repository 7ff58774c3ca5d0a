from __future__ import annotations

import gzip
import io
import os
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import SourceError, StorageError
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.arrays import array_files
from pipeline.ingest.sources.arrays.array_files import inspect_images, read_image, read_labels
from tests.support.array_files import idx

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 8, 6)).astype(np.uint8)
COLOR = RNG.integers(0, 256, (5, 8, 6, 3)).astype(np.uint8)


def saved(path: Path, **content: Any) -> Path:
    np.savez(path, **content)
    return path


def read_all(path: Path) -> np.ndarray[Any, Any]:
    file = inspect_images(path)
    return np.stack([read_image(path, index, file.sha256) for index in range(file.images)])


def refused(path: Path, labels: bool = False) -> str:
    with pytest.raises(SourceError) as caught:
        read_labels(path, 3) if labels else inspect_images(path)
    message = str(caught.value)
    assert message.startswith(f"source {path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_files_are_read_gzipped_or_not(pack: Any, tmp_path: Path) -> None:
    (tmp_path / "grey").write_bytes(pack(idx(GREY)))
    (tmp_path / "color").write_bytes(pack(idx(COLOR)))
    (tmp_path / "labels").write_bytes(pack(idx(np.array([3, 1, 0, 9, 9], np.uint8))))
    assert np.array_equal(read_all(tmp_path / "grey"), GREY[..., None])
    assert np.array_equal(read_all(tmp_path / "color"), COLOR)
    assert read_labels(tmp_path / "labels", 5) == ["3", "1", "0", "9", "9"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_of_every_layout_are_read(save: Any, tmp_path: Path) -> None:
    layouts = [
        (GREY, GREY[..., None]),
        (GREY[..., None], GREY[..., None]),
        (GREY[:, None], GREY[..., None]),
        (COLOR, COLOR),
        (COLOR.transpose(0, 3, 1, 2), COLOR),
        (np.asfortranarray(COLOR), COLOR),
        ((COLOR / 255).astype(np.float32), COLOR),
        ((GREY / 255).astype(">f8"), GREY[..., None]),
    ]
    for number, (given, expected) in enumerate(layouts):
        path = tmp_path / f"{number}.npz"
        save(path, images=given)
        assert np.array_equal(read_all(path), expected), number
        assert read_labels(path, 5) is None


def test_labels_are_integers_or_texts(tmp_path: Path) -> None:
    cases: list[tuple[Any, list[str | None]]] = [
        (np.array([7, -1, 300]), ["7", None, "300"]),
        (np.array(["cat", "", "d☃g"]), ["cat", None, "d☃g"]),
        (np.array([b"cat", b"\xff", b""]), ["cat", "\\xff", None]),
    ]
    for given, expected in cases:
        assert read_labels(saved(tmp_path / "x.npz", labels=given), 3) == expected
    for invalid in (np.array([1.5]), np.array([[1]]), np.array([True])):
        assert "expected integers or texts of shape (N,)" in refused(saved(tmp_path / "x.npz", labels=invalid), True)


def test_a_single_invalid_image_is_rejected_alone(tmp_path: Path) -> None:
    images = np.full((4, 8, 8), 0.5)
    images[1, 0, 0], images[2, 0, 0] = np.nan, 1.01
    path = saved(tmp_path / "x.npz", images=images)
    sha256 = inspect_images(path).sha256
    for index, expected in enumerate([None, "values from nan", "values from 0.5 to 1.01, expected 0 to 1", None]):
        if expected is None:
            assert read_image(path, index, sha256).max() == 128
            continue
        with pytest.raises(Rejected, match=expected) as caught:
            read_image(path, index, sha256)
        assert caught.value.reason == "corrupt"


@pytest.mark.parametrize("length", range(0, 250, 10))
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_cut_idx_file_is_refused(pack: Any, length: int, tmp_path: Path) -> None:
    whole = pack(idx(GREY))
    (tmp_path / "x").write_bytes(whole[:length])
    assert any(sign in refused(tmp_path / "x") for sign in ("cut off", "ends ", "starts with", "not a gzip"))


def test_a_cut_or_damaged_npz_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npz", images=GREY)
    whole = path.read_bytes()
    for length in range(0, len(whole), 30):
        path.write_bytes(whole[:length])
        assert "cut off or damaged" in refused(path)
    path.write_bytes(whole.replace(GREY.tobytes(), GREY[::-1].tobytes()))
    assert "cut off or damaged (Bad CRC" in refused(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n", "starts with 89504e47"),
        (b"\0\0\x07\x03" + bytes(12), "starts with 00000703"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1), "far more than the file can hold"),
        (gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 60_000, 28, 28)), "far more than the file can hold"),
        (idx(GREY) + b"x", "contains more than the uint8 of shape"),
        (gzip.compress(idx(GREY)) + b"x", "not a gzip file"),
        (idx(GREY[0]), "expected uint8, or floats"),
        (idx(GREY[:0]), "at least one image"),
        (idx(GREY.astype(">i4")), "images are int32"),
    ],
)
def test_other_files_than_idx_images_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    assert message in refused(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": GREY, "y": GREY}, "has no array images (found x, y)"),
        ({}, "has no array images (found nothing)"),
        ({"images": GREY.astype(np.int64)}, "images are int64"),
        ({"images": COLOR[..., :2]}, "images are uint8 of shape (5, 8, 6, 2)"),
        ({"images": np.array([{}, []], object)}, "Python objects, which can run code"),
        ({"images": np.zeros(3, "V8")}, "images are void64"),
    ],
)
def test_other_arrays_are_refused(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refused(saved(tmp_path / "x.npz", **content))


def claiming(shape: tuple[int, ...]) -> bytes:
    """Return a .npy file whose header claims an array of `shape`, but which contains only 100 zeros."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue() + bytes(100)


def test_memory_is_not_allocated_for_the_claims_of_a_header(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for shape, message in [
        ((2**40, 100, 100), "far more than the file"),
        ((1000, 10, 10), "ends 99,900 bytes too early"),
    ]:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("images.npy", claiming(shape))
        assert message in refused(path)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-3, 12, 12), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (3, -12, -12), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 12, 12), }",
        "{'descr': '<U0', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '|u1', 'fortran_",
        "{1: 2, 'a': 3}",
        "{[]: 1}",
        "  (",
        "9" * 5000,
    ],
)
def test_hostile_headers_are_refused(header: str, tmp_path: Path) -> None:
    text = header.encode().ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("images.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + bytes(500))
    assert "array images" in refused(tmp_path / "x.npz")


def test_damage_that_only_the_decompressor_detects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", method) as file:
            file.writestr("images.npy", claiming((1, 10, 10)))
        whole = bytearray(path.read_bytes())
        whole[60:75] = bytes(15)
        path.write_bytes(whole)
        assert "damaged" in refused(path) or "expected an array written by numpy.savez" in refused(path)


def test_an_array_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_files, "MAX_ARRAY_BYTES", 100)
    assert "240 bytes, at most 100 are read" in refused(saved(tmp_path / "x.npz", images=GREY))


def test_an_invalid_array_and_an_encrypted_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("images.npy", b"\x93NUMPY\x09\0 and so on")
    assert "expected an array written by numpy.savez" in refused(path)
    content = bytearray(saved(path, images=GREY).read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    path.write_bytes(content)
    assert "encrypted" in refused(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none")
    assert "not a regular file" in refused(tmp_path)


@pytest.mark.timeout(20)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    for name in ("images.npz", "images-idx3"):
        os.mkfifo(tmp_path / name)
        assert "not a regular file" in refused(tmp_path / name)
        assert "not a regular file" in refused(tmp_path / name, labels=True)


@pytest.mark.parametrize("labels", [np.array(["x" * 5_000_000] * 3), np.zeros(20_000_000, np.uint8)])
def test_labels_are_compared_with_the_images_before_they_are_read(labels: Any, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", labels=labels)
    tracemalloc.start()
    message = refused(tmp_path / "x.npz", labels=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "3 images, but 20000000 labels" in message or "labels of 20,000,000 bytes" in message
    assert peak < 2_000_000


def test_a_file_is_read_once_and_refused_after_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "x.npz", images=GREY)
    sha256 = inspect_images(path).sha256
    assert np.array_equal(read_image(path, 0, sha256), GREY[0, ..., None])
    with monkeypatch.context() as patch:
        patch.setattr(array_files, "_open_array", lambda *_: pytest.fail("read again"))
        inspect_images(path)
        read_image(path, 1, sha256)
    array_files._load.cache_clear()
    saved(path, images=GREY[::-1])
    os.utime(path, ns=(1, 1))
    assert inspect_images(path).sha256 != sha256
    with pytest.raises(StorageError, match="has changed since it was listed; run the same command again"):
        read_image(path, 0, sha256)


def test_reading_gives_no_warnings(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_all(saved(tmp_path / "x.npz", images=GREY))
