"""Make a colour or an affine variant of MNIST, or of another collection in its format, as a labelled .npz file.

    python jobs/mnist_variant.py --source mnist --variant color --out mnist-color.npz
    python jobs/mnist_variant.py --source mnist-test --variant affine --copies 32 --out affnist-test.npz

color: RGB images of the same size. For each image, a foreground and a background colour are drawn uniformly from the
RGB cube until their distance is at least half of the side of the cube; grey values become blends of the two colours.

affine: 40 x 40 px images, after affNIST. For each image, the following are drawn uniformly: a rotation of at most 20
degrees, a horizontal shear of at most 0.2, scales of 0.8 to 1.2 for width and height, and a position at which the whole
digit is inside the image. Digits that are too large are centred. Sampling is bilinear, on a black background.

The file has the arrays `images` (uint8) and `labels` (integers, -1 without a label), in which the copies of one image
follow each other. The same arguments give the same file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError, SourceError, exit_with

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

AFFINE_SIDE = 40
"""Side in px of the images of the affine variant."""
MAX_ROTATION_DEGREES, MAX_SHEAR, MIN_SCALE, MAX_SCALE = 20.0, 0.2, 0.8, 1.2
MIN_CONTRAST = 127.5
"""Minimum distance of the foreground and the background colour in the RGB cube, whose side is 255."""
MAX_COPIES = 100
"""Maximum value of --copies."""


def main() -> None:
    """Make the variant that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, metavar="DIR", help="folder of IDX files, or one IDX file of images")
    parser.add_argument("--variant", required=True, choices=["color", "affine"], help="variant to make, see above")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz", help="file to write")
    parser.add_argument(
        "--copies", type=int, default=1, help="number of images per source image (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    arguments = parser.parse_args()
    if not 1 <= arguments.copies <= MAX_COPIES or arguments.seed < 0 or arguments.out.suffix != ".npz":
        parser.error(f"expected --copies of 1 to {MAX_COPIES}, --seed of at least 0 and an --out that ends in .npz")
    n = make_variant(arguments.source, arguments.variant, arguments.out, arguments.copies, arguments.seed)
    print(f"{n} images in {arguments.out}")


def make_variant(source: str, variant: str, out: Path, copies: int, seed: int) -> int:
    """Write `copies` images of the `variant` per image of the IDX files `source` to `out`; return the number of images.

    Raises SourceError if `source` does not have grey images of one size, and PipelineError if `out` cannot be written.
    """
    import numpy as np

    images_NHW, labels = read_grey(source)
    images_NHW, labels = images_NHW.repeat(copies, axis=0), labels.repeat(copies)
    rng = np.random.default_rng(seed)
    images = colored(images_NHW, rng) if variant == "color" else moved(images_NHW, rng)
    part = out.with_name(f"{out.name}.part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, images=images, labels=labels)
        part.replace(out)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise PipelineError(f"--out {out}: {error.strerror}") from error
    return len(images)


def read_grey(source: str) -> tuple[Array, Array]:
    """Return the images, (N, H, W) uint8, and the labels, (N,) int64, of the IDX files `source`."""
    import numpy as np

    from pipeline.ingest.rejection import Rejected
    from pipeline.ingest.sources.arrays.labelled_arrays import read_record
    from pipeline.ingest.sources.detect import read_records

    images, labels = [], []
    for record in read_records(source, "idx"):
        assert record.array_index is not None
        assert record.array_sha256 is not None
        try:
            images.append(read_record(record.source_uri, record.array_index, record.array_sha256))
        except Rejected as rejected:
            raise SourceError(f"source {record.source_uri}: {rejected.detail}") from rejected
        labels.append(-1 if record.label is None else int(record.label))
    shapes = {image.shape for image in images}
    if len(shapes) > 1 or images[0].shape[-1] != 1:
        raise SourceError(f"source {source}: expected grey images of one size, found the shapes {sorted(shapes)}")
    return np.stack(images)[..., 0], np.array(labels)


def colored(images_NHW: Array, rng: np.random.Generator) -> Array:
    """Return (N, H, W, 3) uint8 images: each image as a blend of two random colours."""
    import numpy as np

    n = len(images_NHW)
    colors_N2C = rng.integers(0, 256, (n, 2, 3))
    while (too_close := np.linalg.norm(colors_N2C[:, 0] - colors_N2C[:, 1], axis=1) < MIN_CONTRAST).any():
        colors_N2C[too_close] = rng.integers(0, 256, (too_close.sum(), 2, 3))
    result = np.empty((*images_NHW.shape, 3), np.uint8)
    for image_HW, (foreground, background), target in zip(images_NHW, colors_N2C, result, strict=True):
        target[:] = np.rint(background + image_HW[..., None] / 255 * (foreground - background))
    return result


def moved(images_NHW: Array, rng: np.random.Generator) -> Array:
    """Return (N, 40, 40) uint8 images: each image under a random affine transformation."""
    import numpy as np
    from PIL import Image

    n = len(images_NHW)
    angle = np.radians(rng.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES, n))
    shear = rng.uniform(-MAX_SHEAR, MAX_SHEAR, n)
    scale_N2 = rng.uniform(MIN_SCALE, MAX_SCALE, (n, 2))
    position_N2 = rng.uniform(0, 1, (n, 2))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    shearing = np.broadcast_to(np.eye(2), (n, 2, 2)).copy()
    shearing[:, 0, 1] = shear
    forward_N22 = rotation @ shearing * scale_N2[:, None, :]
    inverse_N22 = np.linalg.inv(forward_N22)

    result = np.empty((n, AFFINE_SIDE, AFFINE_SIDE), np.uint8)
    for index, image_HW in enumerate(images_NHW):
        low, high = _extent(image_HW, forward_N22[index])
        room = AFFINE_SIDE - (high - low)
        shift = np.where(room > 0, position_N2[index] * room, room / 2) - low
        # Pillow needs the map from pixels of the result to pixels of the source, with the corner as the origin.
        (a, b), (d, e) = inverse_N22[index]
        c, f = -inverse_N22[index] @ shift
        digit = Image.fromarray(image_HW).transform(
            (AFFINE_SIDE, AFFINE_SIDE), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
        )
        result[index] = np.asarray(digit)
    return result


def _extent(image_HW: Array, forward_22: Array) -> tuple[Array, Array]:
    """Return the minimum and the maximum (x, y) in px of the digit under `forward_22`; of the image if it is black."""
    import numpy as np

    rows, columns = np.nonzero(image_HW)
    if not len(rows):
        rows, columns = np.array([0, image_HW.shape[0] - 1]), np.array([0, image_HW.shape[1] - 1])
    # Interpolation spreads a pixel by one pixel to either side.
    left, right = columns.min() - 0.5, columns.max() + 1.5
    top, bottom = rows.min() - 0.5, rows.max() + 1.5
    corners = forward_22 @ np.array([[left, left, right, right], [top, bottom, top, bottom]])
    return corners.min(axis=1), corners.max(axis=1)


if __name__ == "__main__":
    exit_with(main)
