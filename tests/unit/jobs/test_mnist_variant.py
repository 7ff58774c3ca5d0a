from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.mnist_variant import AFFINE_SIDE, MIN_CONTRAST, make_variant
from pipeline.errors import PipelineError, SourceError
from tests.support.array_files import idx


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Twenty crosses and bars of 20 px, the size of digits, in images of 28 px."""
    images = np.zeros((20, 28, 28), np.uint8)
    images[:, 4:24, 12:16] = 255
    images[::2, 12:16, 4:24] = 255
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(20, dtype=np.uint8) % 2))
    return tmp_path


def made(mnist: Path, variant: str, copies: int = 1, seed: int = 0) -> tuple[np.ndarray, list[int], bytes]:
    out = mnist / f"{variant}.npz"
    n = make_variant(str(mnist), variant, out, copies, seed)
    with np.load(out) as file:
        assert len(file["images"]) == len(file["labels"]) == n
        return file["images"], file["labels"].tolist(), out.read_bytes()


@pytest.mark.parametrize("variant", ["color", "affine"])
def test_the_same_seed_gives_the_same_file(variant: str, mnist: Path) -> None:
    first = made(mnist, variant)
    assert made(mnist, variant)[2] == first[2]
    assert not np.array_equal(made(mnist, variant, seed=1)[0], first[0])
    assert sorted(path.suffix for path in mnist.iterdir()) == ["", "", ".npz"]


def test_colored_images_have_two_colours_that_differ(mnist: Path) -> None:
    images, labels, _ = made(mnist, "color", copies=50)
    assert images.shape == (1000, 28, 28, 3)
    assert images.dtype == np.uint8
    assert labels == np.repeat(np.arange(20) % 2, 50).tolist()
    foreground, background = images[:, 14, 14].astype(int), images[:, 0, 0].astype(int)
    assert np.linalg.norm(foreground - background, axis=1).min() >= MIN_CONTRAST
    assert len(np.unique(background, axis=0)) > 900
    assert (images[:, 5, 12] == foreground).all()
    assert 100 < background.mean() < 155


def test_moved_images_hold_the_whole_digit(mnist: Path) -> None:
    images, labels, _ = made(mnist, "affine", copies=10)
    assert images.shape == (200, AFFINE_SIDE, AFFINE_SIDE)
    assert labels == np.repeat(np.arange(20) % 2, 10).tolist()
    ink = images.reshape(200, -1).sum(axis=1, dtype=np.int64) / 255
    area = np.repeat(np.where(np.arange(20) % 2, 80, 144), 10)
    assert (ink / area).min() >= 0.8**2 - 0.05
    assert (ink / area).max() <= 1.2**2 + 0.05
    centre_x = (images.sum(axis=1) * np.arange(AFFINE_SIDE)).sum(axis=1) / images.sum(axis=(1, 2))
    assert centre_x.std() > 2, "digits have different positions"


def test_images_that_are_not_grey_are_refused(mnist: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"--out .*: No such file or directory"):
        make_variant(str(mnist), "color", tmp_path / "none" / "x.npz", 1, 0)
    (mnist / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((20, 8, 8, 3), np.uint8)))
    with pytest.raises(SourceError, match="expected grey images of one size"):
        make_variant(str(mnist), "color", tmp_path / "x.npz", 1, 0)
