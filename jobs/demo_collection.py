"""Generate a demonstration crawl from photographs that scikit-image and scikit-learn contain, without any download.

Each photograph is one view of a sight. Most images of the crawl are variants of a view: seen from another viewpoint,
in another light, and framed, sized and compressed differently. The others are what crawls of hashtags also contain:
unrelated pictures, broken files and duplicates.

    python jobs/demo_collection.py --out demo

writes a crawl of a hashtag TAG, in the layout of instagram-scraper, and its true labels:

    demo/TAG/<id>_n.jpg   image files
    demo/TAG/TAG.json     metadata of the images
    demo/labels.csv       true content of each file: file, kind (view | noise | broken | repeat), view
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError, exit_with

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    Photo = np.ndarray[Any, np.dtype[np.uint8]]  # height x width x 3, RGB

NOISE_SHARE, BROKEN_SHARE, REPEAT_SHARE = 0.25, 0.03, 0.03
"""Expected shares of unrelated pictures, broken files and duplicates in the crawl."""
FIRST_POST = 3_000_000_000_000_000_000
"""Id of the first post."""
FIRST_SECOND = 1_700_000_000
"""Earliest time of a post, in Unix seconds."""
TEXTURES = ("brick", "grass", "gravel")
"""Images of scikit-image that are used for unrelated pictures."""


@dataclass(frozen=True)
class CrawledFile:
    """A file of the crawl with its true label."""

    kind: str
    """One of view, noise, broken and repeat."""
    view: str
    """Name of the view; empty for noise and broken files."""
    data: bytes
    """Content of the file."""


def main() -> None:
    """Generate the crawl that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the crawl and its labels")
    parser.add_argument("--n", type=int, default=400, help="number of files in the crawl (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed; the same seed gives the same crawl (default: %(default)s)"
    )
    parser.add_argument("--tag", default="demo", help="hashtag of the crawl (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.n < 1 or arguments.seed < 0 or not re.fullmatch(r"\w[\w.-]*", arguments.tag):
        parser.error("expected --n of at least 1, --seed of at least 0 and a --tag that is a valid folder name")
    folder = make_collection(arguments.out, arguments.n, arguments.seed, arguments.tag)
    print(f"{arguments.n} files of #{arguments.tag} in {folder}")


def make_collection(out: Path, n: int, seed: int, tag: str) -> Path:
    """Write a crawl of `n` files and its labels below `out`; return the folder of the crawl.

    The same arguments give the same bytes. Raises PipelineError if the photographs are not installed, or if the folder
    contains other files.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    photos, textures = load_photos()
    files: list[CrawledFile] = []
    for _ in range(n):
        files.append(_next_file(files, photos, textures, rng))
    names = [f"{FIRST_POST + 1009 * i}_n.jpg" for i in range(n)]
    folder = out / tag
    metadata = f"{tag}.json"
    if folder.is_dir() and (others := {p.name for p in folder.iterdir()} - {metadata, *names}):
        raise PipelineError(
            f"{folder} contains other files ({min(others)}, …); choose another --out, or delete the folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in zip(names, files, strict=True):
        (folder / name).write_bytes(file.data)
    nodes = [_node(i, name, tag, rng) for i, name in enumerate(names)]
    (folder / metadata).write_text(json.dumps({"GraphImages": nodes}, ensure_ascii=False), encoding="utf-8")
    with (out / "labels.csv").open("w", newline="", encoding="utf-8") as labels:
        writer = csv.writer(labels)
        writer.writerow(["file", "kind", "view"])
        writer.writerows([name, file.kind, file.view] for name, file in zip(names, files, strict=True))
    return folder


def load_photos() -> tuple[dict[str, Photo], list[Photo]]:
    """Return the views by name, and the textures for noise, from the installed packages."""
    import numpy as np

    try:
        from skimage import data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise PipelineError(
            f"the demonstration collection needs {error.name}, which is not installed; run pip install -e '.[dev]'"
        ) from error
    views = {
        "astronaut": data.astronaut(),
        "camera": np.stack([data.camera()] * 3, axis=-1),
        "cat": data.cat(),
        "coffee": data.coffee(),
        "motorcycle": data.stereo_motorcycle()[0],
        "rocket": data.rocket(),
        "china": load_sample_image("china.jpg"),
        "flower": load_sample_image("flower.jpg"),
    }
    return views, [np.stack([getattr(data, name)()] * 3, axis=-1) for name in TEXTURES]


def _next_file(
    files: list[CrawledFile], photos: dict[str, Photo], textures: list[Photo], rng: np.random.Generator
) -> CrawledFile:
    draw = float(rng.random())
    images = [file for file in files if file.kind in {"view", "noise"}]
    if draw < REPEAT_SHARE and images:
        original = images[rng.integers(len(images))]
        return CrawledFile("repeat", original.view, original.data)
    view = str(rng.choice(sorted(photos)))
    if draw < REPEAT_SHARE + NOISE_SHARE:
        return CrawledFile("noise", "", _jpeg(_unrelated_image(textures, rng), rng))
    photograph = _jpeg(_variant_of(photos[view], rng), rng)
    if draw < REPEAT_SHARE + NOISE_SHARE + BROKEN_SHARE:
        return CrawledFile("broken", "", _broken(photograph, rng))
    return CrawledFile("view", view, photograph)


def _variant_of(photo: Photo, rng: np.random.Generator) -> Image.Image:
    """Return the view `photo` from a random viewpoint, with random framing, size and light."""
    import numpy as np
    from PIL import Image

    width, height = _frame(rng)
    margin = min(photo.shape[:2]) // 2
    padded = np.pad(photo, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")

    # Pillow needs the map from pixels of the result to pixels of the photograph. The viewpoint is defined in
    # coordinates whose origin is the centre and whose unit is half the short side of either picture.
    half = min(photo.shape[:2]) / 2
    to_photo = np.array([[half, 0, padded.shape[1] / 2], [0, half, padded.shape[0] / 2], [0, 0, 1]])
    angle, zoom = rng.normal(0, 0.06), rng.uniform(0.8, 1.0)
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    viewpoint = np.eye(3)
    viewpoint[:2, :2] = turn + rng.normal(0, 0.03, (2, 2))
    viewpoint[:2, 2] = rng.uniform(-0.1, 0.1, 2)
    viewpoint[2, :2] = rng.normal(0, 0.04, 2)
    unit = 2 / min(width, height)
    from_result = np.array([[unit, 0, -unit * width / 2], [0, unit, -unit * height / 2], [0, 0, 1]])
    homography = to_photo @ viewpoint @ from_result
    coefficients = (homography / homography[2, 2]).ravel()[:8].tolist()
    image = Image.fromarray(padded).transform(
        (width, height), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC
    )

    gain, bias = rng.uniform(0.7, 1.25, 3), rng.normal(0, 10, 3)
    lit = np.asarray(image, np.float32) * gain + bias
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))


def _unrelated_image(textures: list[Photo], rng: np.random.Generator) -> Image.Image:
    """Return a picture of none of the views: a gradient, ellipses on a gradient, or a tinted piece of a texture."""
    import numpy as np
    from PIL import Image, ImageDraw

    width, height = _frame(rng)
    kind = rng.choice(["gradient", "ellipses", "texture"])
    if kind == "texture":
        texture = textures[rng.integers(len(textures))]
        side = int(rng.integers(60, 200))
        top, left = rng.integers(0, texture.shape[0] - side), rng.integers(0, texture.shape[1] - side)
        tinted = texture[top : top + side, left : left + side] * rng.uniform(0.4, 1.1, 3)
        return Image.fromarray(np.clip(tinted, 0, 255).astype(np.uint8)).resize((width, height))
    corners = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    image = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
    if kind == "ellipses":
        draw = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(3, 20))):
            (x, y), (w, h) = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.05, 0.5, 2) * (width, height)
            red, green, blue = rng.integers(0, 256, 3).tolist()
            draw.ellipse([x - w / 2, y - h / 2, x + w / 2, y + h / 2], fill=(red, green, blue))
    return image


def _frame(rng: np.random.Generator) -> tuple[int, int]:
    """Return a random width and height in px, of a square, portrait or landscape picture."""
    short = int(rng.integers(180, 420))
    long = int(short * rng.choice([1.0, 1.25, 1.5]))
    return (short, long) if rng.random() < 0.5 else (long, short)


def _jpeg(image: Image.Image, rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(60, 96)))
    return buffer.getvalue()


def _broken(photograph: bytes, rng: np.random.Generator) -> bytes:
    """Return the content of a file that a scraper could leave after a failed download of `photograph`."""
    outcomes: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: photograph[: len(photograph) // 3],
        lambda: b"<!DOCTYPE html><title>Login</title><p>Please log in to continue.</p>",
        lambda: photograph[:200] + rng.bytes(500),
    ]
    return outcomes[rng.integers(len(outcomes))]()


def _node(i: int, name: str, tag: str, rng: np.random.Generator) -> dict[str, Any]:
    """Return the metadata of the post `i` with the file `name`, as instagram-scraper writes it."""
    address = f"https://cdn.example/{name}"
    return {
        "__typename": "GraphImage",
        "id": str(FIRST_POST + 1009 * i),
        "shortcode": f"D{i:07x}",
        "is_video": False,
        "taken_at_timestamp": FIRST_SECOND + int(rng.integers(0, 31_536_000)),
        "display_url": address,
        "urls": [f"{address}?size=l"],
        "tags": [tag],
        "edge_media_to_caption": {"edges": [{"node": {"text": f"Photo {i} of the day #{tag}"}}]},
        "edge_media_preview_like": {"count": int(rng.integers(0, 900))},
        "owner": {"id": str(int(rng.integers(1, 10**9)))},
    }


if __name__ == "__main__":
    exit_with(main)
