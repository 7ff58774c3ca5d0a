"""What near-duplicates cost and find: made crawls, where it is known which photographs are different ones.

    python tests/benchmarks/bench_duplicates.py [--n 1500] [--seeds 7 11]

needs ../shared. Of every crawl's images it looks for pairs that would be called duplicates although they are not (all
files of a made crawl but its byte-for-byte repeats are different pictures), by the number of bits that may differ; and
it posts some of them again in several ways, to see how many are recognised with the limits of the product.
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a file, Python looks beside it only

from pipeline.config import IngestConfig
from pipeline.ingest.images import decode_square
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.repeats import near_duplicates
from pipeline.ingest.repeats.near_duplicates import as_looks, look_of, originals_of

SHARED = Path(__file__).parents[3] / "shared"
BITS = (4, 8, 12)
REPOSTED = 200


def saved(image: Image.Image, file_format: str, quality: int) -> bytes:
    """The content of a file of `image`."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, quality=quality)
    return buffer.getvalue()


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """`image` at `factor` times its size."""
    size = round(factor * image.width), round(factor * image.height)
    return image.resize(size, Image.Resampling.LANCZOS)


def cropped(image: Image.Image, share: float) -> Image.Image:
    """`image` without `share` of its width and height on each side."""
    dx, dy = round(share * image.width), round(share * image.height)
    return image.crop((dx, dy, image.width - dx, image.height - dy))


WAYS: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG, quality 85": lambda image: saved(image, "JPEG", 85),
    "JPEG, quality 40": lambda image: saved(image, "JPEG", 40),
    "WebP, quality 70": lambda image: saved(image, "WEBP", 70),
    "at 70 %, JPEG 75": lambda image: saved(scaled(image, 0.7), "JPEG", 75),
    "at 150 %, JPEG 75": lambda image: saved(scaled(image, 1.5), "JPEG", 75),
    "5 % lighter": lambda image: saved(image.point(lambda value: min(255, round(1.05 * value))), "JPEG", 85),
    "cropped by 1 %": lambda image: saved(cropped(image, 0.01), "JPEG", 85),
    "cropped by 3 %": lambda image: saved(cropped(image, 0.03), "JPEG", 85),
    "mirrored": lambda image: saved(ImageOps.mirror(image), "JPEG", 85),
}


def crawl(n: int, seed: int, out: Path) -> list[tuple[str, bytes]]:
    """Kind (view or noise) and content of the images of a made crawl that ingest accepts."""
    command = [sys.executable, f"{SHARED}/tools/make_crawl.py", "--photos", f"{SHARED}/data/photos", "--n", str(n)]
    subprocess.run([*command, "--seed", str(seed), "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    with (out / "labels.csv").open() as file:
        kinds = {Path(row["file"]).name: row["kind"] for row in csv.DictReader(file)}
    paths = sorted(path for path in out.rglob("*") if kinds.get(path.name) in {"view", "noise"})
    return [(kinds[path.name], path.read_bytes()) for path in paths]


def main() -> None:
    """Make the crawls and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1500, help="files of each crawl [1500]")
    parser.add_argument("--seeds", type=int, nargs="*", default=[7, 11], help="of the crawls [7 11]")
    arguments = parser.parse_args()
    if not SHARED.exists():
        sys.exit(f"needs {SHARED}, which is not there")
    config = IngestConfig()
    seconds, reposts = [], []
    limit = near_duplicates.MOST_BITS
    for seed in arguments.seeds:
        kinds, looks = [], []
        with tempfile.TemporaryDirectory() as folder:
            files = crawl(arguments.n, seed, Path(folder))
        for kind, data in files:
            try:
                pixels = decode_square(data, config).pixels
            except Rejected:
                continue
            started = time.perf_counter()
            looks.append(look_of(pixels))
            seconds.append(time.perf_counter() - started)
            kinds.append(kind)
            reposts.append((looks[-1], data))
        for near_duplicates.MOST_BITS in BITS:
            lost = [kinds[later] for later in originals_of(as_looks(looks))]
            print(
                f"crawl {seed}, {near_duplicates.MOST_BITS:2} bits: {lost.count('view')} of {kinds.count('view')} "
                f"photographs of views lost, {lost.count('noise')} of {kinds.count('noise')} of noise",
                flush=True,
            )
    near_duplicates.MOST_BITS = limit
    chosen = np.random.default_rng(0).permutation(len(reposts))[:REPOSTED]
    for way, post_again in WAYS.items():
        found = total = 0
        for place in chosen:
            look, data = reposts[place]
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
            try:
                again = decode_square(post_again(image), config).pixels
            except Rejected:
                continue
            total += 1
            found += bool(originals_of(as_looks([look, look_of(again)])))
        print(f"{way:<18} {found} of {total} recognised", flush=True)
    print(f"{1e3 * np.median(seconds):.2f} ms per image to hash")


if __name__ == "__main__":
    main()
