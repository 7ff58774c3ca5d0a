"""Accuracy and time of near-duplicate detection, on synthetic crawls in which all duplicates are known.

    python tests/benchmarks/bench_duplicates.py [--n 1500] [--seeds 7 11]

The script needs ../shared. All files of a synthetic crawl except its byte-for-byte duplicates are different pictures.
For several limits on the number of different bits, the script counts the images that are taken for duplicates by
mistake. It also modifies some images as reposts do, and counts how many of them the limits of the pipeline recognise.
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

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script, this file can only import from its own folder

from pipeline.config import IngestConfig
from pipeline.ingest.images import decode_square
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.repeats import near_duplicates
from pipeline.ingest.repeats.near_duplicates import as_signatures, originals_of, signature_of

SHARED = Path(__file__).parents[3] / "shared"
BITS = (4, 8, 12)
"""Limits on the number of different bits for which false duplicates are counted."""
REPOSTED = 200
"""Number of images that are posted again."""


def saved(image: Image.Image, file_format: str, quality: int) -> bytes:
    """Return the content of a file that holds `image`."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, quality=quality)
    return buffer.getvalue()


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """Return `image` at `factor` times its size."""
    size = round(factor * image.width), round(factor * image.height)
    return image.resize(size, Image.Resampling.LANCZOS)


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Return `image` without `share` of its width and height on each side."""
    dx, dy = round(share * image.width), round(share * image.height)
    return image.crop((dx, dy, image.width - dx, image.height - dy))


MODIFICATIONS: dict[str, Callable[[Image.Image], bytes]] = {
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
"""Modifications of a repost: each returns the content of the modified file."""


def crawl(n: int, seed: int, out: Path) -> list[tuple[str, bytes]]:
    """Create a synthetic crawl in `out`; return kind and content of each file that shows a view or noise."""
    command = [sys.executable, f"{SHARED}/tools/make_crawl.py", "--photos", f"{SHARED}/data/photos", "--n", str(n)]
    subprocess.run([*command, "--seed", str(seed), "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    with (out / "labels.csv").open() as file:
        kinds = {Path(row["file"]).name: row["kind"] for row in csv.DictReader(file)}
    paths = sorted(path for path in out.rglob("*") if kinds.get(path.name) in {"view", "noise"})
    return [(kinds[path.name], path.read_bytes()) for path in paths]


def main() -> None:
    """Create the crawls, and print false duplicates and recognised reposts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1500, help="number of files per crawl (default: 1500)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[7, 11], help="seeds of the crawls (default: 7 11)")
    arguments = parser.parse_args()
    if not SHARED.exists():
        sys.exit(f"{SHARED} does not exist; it must contain the photographs and make_crawl.py")
    config = IngestConfig()
    seconds, originals = [], []
    limit = near_duplicates.MAX_DIFFERENT_BITS
    for seed in arguments.seeds:
        kinds, signatures = [], []
        with tempfile.TemporaryDirectory() as folder:
            files = crawl(arguments.n, seed, Path(folder))
        for kind, data in files:
            try:
                pixels = decode_square(data, config).pixels
            except Rejected:
                continue
            started = time.perf_counter()
            signatures.append(signature_of(pixels))
            seconds.append(time.perf_counter() - started)
            kinds.append(kind)
            originals.append((signatures[-1], data))
        for near_duplicates.MAX_DIFFERENT_BITS in BITS:
            lost = [kinds[duplicate] for duplicate in originals_of(as_signatures(signatures))]
            print(
                f"crawl {seed}, {near_duplicates.MAX_DIFFERENT_BITS:2} bits: "
                f"{lost.count('view')} of {kinds.count('view')} photographs of views and "
                f"{lost.count('noise')} of {kinds.count('noise')} pictures of noise taken for duplicates",
                flush=True,
            )
    near_duplicates.MAX_DIFFERENT_BITS = limit
    chosen = np.random.default_rng(0).permutation(len(originals))[:REPOSTED]
    for name, modify in MODIFICATIONS.items():
        found = total = 0
        for index in chosen:
            signature, data = originals[index]
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
            try:
                reposted = decode_square(modify(image), config).pixels
            except Rejected:
                continue
            total += 1
            found += bool(originals_of(as_signatures([signature, signature_of(reposted)])))
        print(f"{name:<18} {found} of {total} recognised", flush=True)
    print(f"{1e3 * np.median(seconds):.2f} ms per image to compute its signature")


if __name__ == "__main__":
    main()
