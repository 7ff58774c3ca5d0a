"""Speed, memory and image quality of ingesting URLs, with this project's job and with img2dataset.

    python tests/benchmarks/bench_ingest.py [--images 5000] [--scenarios plain,latency,faults] [--json FILE]

One after the other, both tools download the same URLs from a local server (photo_server.py) and write crops of
128×128 px to WebDataset tars, on the same two cores, with one decoding process per core. img2dataset is installed from
the package index in a separate virtual environment. Absolute times depend on the load of the machine: compare only
ratios from one run. README.md beside this file has the last measured table.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import venv
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script, this file can only import from its own folder

from tests.benchmarks.photo_server import never_ends
from tests.benchmarks.process_tree import Watch

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared/data/photos"
SIZE = 128
"""Side of the crops in px."""
CORES = 2
"""Number of cores that both tools may use."""
LONG_SIDES = (1200, 1600)
"""Long sides of the enlarged copies in px; the photographs themselves have 800 px."""
SCENARIOS = ("plain", "latency", "faults")
"""Scenarios of photo_server.py."""
FAULT_OPTIONS = {"deadline_s": 5, "attempts": 2, "rounds": 1}
"""Settings of this project's downloads in the scenario ``faults``."""
THREADS = 64
"""Number of concurrent downloads per process of img2dataset."""
RETRIES = 2
"""Number of retries of img2dataset."""
MILLIONS = 100
"""Number of images in millions for which core-hours are extrapolated."""
RATIOS = {
    "throughput_ratio": "images_per_second",
    "downloading_ratio": "images_per_second_downloading",
    "per_core_ratio": "images_per_second_per_core",
}
"""Rates that are compared if both tools finish, by name of their ratio."""


def make_photos(folder: Path) -> list[Path]:
    """Write the photographs and their enlarged copies to `folder`; return the files in the order of the server."""
    for path in sorted(PHOTOS.glob("*.jpg")):
        (folder / f"{path.stem}-original.jpg").write_bytes(path.read_bytes())
        with Image.open(path) as image:
            for side in LONG_SIDES:
                scale = side / max(image.size)
                enlarged = image.resize(
                    (round(scale * image.width), round(scale * image.height)), Image.Resampling.LANCZOS
                )
                enlarged.save(folder / f"{path.stem}-{side}.jpg", quality=90)
    return sorted(folder.glob("*.jpg"))


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run a server of the photographs in `folder`, and yield its URL."""
    command = [sys.executable, str(Path(__file__).with_name("photo_server.py")), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


def get_json(url: str) -> Any:
    """Return the JSON document at `url`."""
    with urllib.request.urlopen(url) as response:
        return json.load(response)


def install_img2dataset(folder: Path) -> Path:
    """Return the program img2dataset in the virtual environment `folder`, which is created if it does not exist."""
    program = folder / "bin" / "img2dataset"
    if not program.exists():
        print(f"installing img2dataset in {folder}", flush=True)
        try:
            venv.create(folder, with_pip=True)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "img2dataset"]
            subprocess.run(pip, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
            sys.exit(f"cannot install img2dataset in {folder}: {reason}")
    return program


def img2dataset_command(program: Path, table: Path, output: Path, images: int) -> list[str]:
    """Return the command of img2dataset.

    Each of its two processes writes one shard, so that neither waits for the other at the end of a shard.
    """
    options = {
        "url_list": table, "input_format": "csv", "url_col": "url", "output_folder": output,
        "output_format": "webdataset", "image_size": SIZE, "resize_mode": "center_crop", "processes_count": CORES,
        "thread_count": THREADS, "retries": RETRIES, "timeout": 10, "number_sample_per_shard": -(-images // CORES),
    }  # fmt: skip
    return [str(program), *(f"--{name}={value}" for name, value in options.items())]


def ingest_command(table: Path, output: Path, scenario: str) -> list[str]:
    """Return the command of the job, as a user starts it.

    In ``faults``, downloads time out after seconds instead of minutes, because some bodies never end.
    """
    command = [sys.executable, str(ROOT / "jobs" / "cluster_collection.py"), "--stages", "ingest"]
    command += ["--collection", "photos", "--source", str(table), "--workspace", str(output)]
    command += ["--keep-duplicates", "--allow-private-hosts", "--image-size", str(SIZE)]
    if scenario == "faults":
        for name, value in FAULT_OPTIONS.items():
            command += ["--set", f"ingest.http.{name}={value}"]
    return command


def run(command: list[str], longest_s: float, log: Path) -> tuple[dict[str, Any], Watch]:
    """Run `command` for at most `longest_s` seconds; return what it used, and the `Watch`. Its output goes to `log`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1"}
    started = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        with Watch(process.pid) as watch:
            try:
                process.wait(None if longest_s == math.inf else longest_s)
            except subprocess.TimeoutExpired:
                watch.kill()
                process.wait()
                finished = False
            else:
                finished = True
    if finished and process.returncode:
        sys.exit(f"{command[0]} failed with {process.returncode}:\n{log.read_text()[-2000:]}")
    usage = {
        "finished": finished,
        "started": started,
        "seconds": time.monotonic() - started,
        "cpu_seconds": watch.cpu_s[-1][1],
        "peak_memory_bytes": watch.peak_bytes,
        "peak_memory_bytes_without_ray": watch.peak_bytes_without_ray,
    }
    return usage, watch


def crops(output: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the number of the URL and the JPEG file of each image in the tars below `output`.

    A truncated tar yields the images before its end.
    """
    for path in sorted(output.rglob("*.tar")):
        jpeg = b""
        with path.open("rb") as file:
            try:
                with tarfile.open(fileobj=file, mode="r|") as tar:
                    for member in tar:
                        content = tar.extractfile(member)
                        data = content.read() if content is not None else b""
                        if member.name.endswith(".jpg"):
                            jpeg = data
                        elif member.name.endswith(".json"):
                            document = json.loads(data)
                            url = document.get("source_uri") or document["url"]
                            yield int(url.rpartition("/")[2].removesuffix(".jpg")), jpeg
            except tarfile.ReadError:
                continue


def reference(path: Path, rounded: bool) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the central square of a photograph, resized by Lanczos without rounding: (SIZE, SIZE, 3) in [0, 255].

    Args:
        path: file of the photograph.
        rounded: whether to resize to whole pixels before cropping, as img2dataset does; the job crops first. The
            results differ by less than a pixel.
    """
    with Image.open(path) as file:
        image = file.convert("RGB")
    width, height = image.size
    side = min(image.size)
    if rounded:
        columns, rows = round(SIZE * width / side), round(SIZE * height / side)
        unit = (width / columns, height / rows)
        left, top = (columns - SIZE) // 2 * unit[0], (rows - SIZE) // 2 * unit[1]
        box = (left, top, left + SIZE * unit[0], top + SIZE * unit[1])
    else:
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    channels = [
        np.asarray(channel.convert("F").resize((SIZE, SIZE), Image.Resampling.LANCZOS, box), np.float64)
        for channel in image.split()
    ]
    return np.clip(np.stack(channels, axis=-1), 0, 255)


def examine(output: Path, references: list[np.ndarray[Any, np.dtype[np.float64]]]) -> dict[str, Any]:
    """Return the number of images in `output`, their URLs' numbers, and their mean peak signal-to-noise ratio in dB."""
    numbers, ratios = set(), []
    for number, data in crops(output):
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB"), np.float64)
        assert pixels.shape == (SIZE, SIZE, 3), (
            f"{output}: expected images of shape {(SIZE, SIZE, 3)}, but one has {pixels.shape}"
        )
        error = np.mean((pixels - references[number % len(references)]) ** 2)
        ratios.append(10 * np.log10(255**2 / max(error, 1e-9)))
        numbers.add(number)
    return {"accepted": len(numbers), "numbers": numbers, "psnr_db": float(np.mean(ratios)) if ratios else 0.0}


def rejections(output: Path) -> Counter[str]:
    """Return the numbers of rejected records of the job's crawl below `output`, by reason."""
    (marker,) = output.glob("*/crawls/*/crawl.json")
    return Counter(json.loads(marker.read_text())["rejected"])


def measure(tool: str, command: list[str], site: str, output: Path, longest_s: float, images: int) -> dict[str, Any]:
    """Reset the server, run `command` of `tool`, and return its times, processor time and memory."""
    get_json(f"{site}/reset")
    found, watch = run(command, longest_s, output.with_suffix(".log"))
    # Downloading lasts from the first request that the server received to the end of the process.
    started = found.pop("started")
    first, end = get_json(f"{site}/first") or math.inf, started + found["seconds"]
    found["start_seconds"] = min(first, end) - started
    found["download_seconds"] = found["seconds"] - found["start_seconds"]
    found["download_cpu_seconds"] = watch.cpu_between(min(first, end), end)
    return found | {"tool": tool, "images": images}


def add_rates(found: dict[str, Any]) -> None:
    """Add the rates in images/s and the core-hours, which follow from the number of accepted images."""
    accepted = found["accepted"]
    found["images_per_second"] = accepted / found["seconds"]
    found["images_per_second_downloading"] = accepted / max(1e-9, found["download_seconds"])
    # Other programs on the machine slow down the downloads, but hardly change the processor time per image.
    found["images_per_second_per_core"] = accepted / max(1e-9, found["download_cpu_seconds"])
    found["core_hours_per_100_million"] = MILLIONS * 1e6 / max(1e-9, found["images_per_second_per_core"]) / 3600


def compare(
    scenario: str, arguments: argparse.Namespace, site: str, photos: list[Path], folder: Path
) -> dict[str, Any]:
    """Measure both tools in one scenario."""
    table = folder / f"{scenario}.csv"
    table.write_text("url\n" + "".join(f"{site}/{scenario}/{i}.jpg\n" for i in range(arguments.images)))
    valid = {i for i in range(arguments.images) if not (scenario == "faults" and never_ends(i))}
    result: dict[str, Any] = {"scenario": scenario, "images": arguments.images, "sound": len(valid)}
    program = install_img2dataset(arguments.img2dataset_venv)
    for tool in ("img2dataset", "ingest"):
        output = folder / f"{scenario}-{tool}"
        is_job = tool == "ingest"
        command = (
            ingest_command(table, output, scenario)
            if is_job
            else img2dataset_command(program, table, output, arguments.images)
        )
        longest_s = arguments.longest if scenario == "faults" and not is_job else math.inf
        found = measure(tool, command, site, output, longest_s, arguments.images)
        found |= examine(output, [reference(path, rounded=not is_job) for path in photos])
        found["sound_missing"] = len(valid - found.pop("numbers"))
        if is_job and found["finished"]:
            found["rejected"] = dict(rejections(output))
        add_rates(found)
        result[tool] = found
        print_line(scenario, found)
    job, other = result["ingest"], result["img2dataset"]
    for name, rate in RATIOS.items():
        result[name] = job[rate] / other[rate] if other["finished"] else None
    result["memory_ratio"] = job["peak_memory_bytes"] / other["peak_memory_bytes"]
    result["psnr_difference_db"] = job["psnr_db"] - other["psnr_db"]
    return result


def print_line(scenario: str, found: dict[str, Any]) -> None:
    """Print the results of one tool in one scenario."""
    end = "" if found["finished"] else f"  did not finish in {found['seconds']:.0f} s"
    rejected = f"  rejected {found['rejected']}" if found.get("rejected") else ""
    missing = f"  {found['sound_missing']} valid images missing" if found["sound_missing"] else ""
    print(
        f"{scenario:<8} {found['tool']:<12} {found['accepted']:6d} images in {found['seconds']:6.1f} s"
        f" ({found['start_seconds']:.1f} s before the first request): {found['images_per_second']:6.1f} images/s,"
        f" {found['images_per_second_downloading']:6.1f} while downloading,"
        f" {found['images_per_second_per_core']:6.1f} per core,"
        f" {found['peak_memory_bytes'] / 2**20:6.0f} MiB ({found['peak_memory_bytes_without_ray'] / 2**20:.0f} without"
        f" Ray's services), {found['psnr_db']:.2f} dB,"
        f" {found['core_hours_per_100_million']:,.0f} core-hours/{MILLIONS} million{rejected}{missing}{end}",
        flush=True,
    )


def main() -> None:
    """Run both tools in each scenario, and print their results and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="number of URLs per scenario (default: 5000)")
    parser.add_argument(
        "--scenarios", default=",".join(SCENARIOS), help="scenarios to run (default: plain,latency,faults)"
    )
    parser.add_argument(
        "--longest",
        type=float,
        default=150.0,
        help="seconds after which img2dataset is killed in faults (default: 150)",
    )
    parser.add_argument(
        "--img2dataset-venv",
        type=Path,
        default=Path(tempfile.gettempdir()) / "img2dataset-venv",
        help="virtual environment of img2dataset, created if missing (default: in the folder for temporary files)",
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    if not PHOTOS.is_dir():
        sys.exit(f"{PHOTOS} does not exist; it must contain the photographs")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        photos = make_photos(folder / "photos")
        with serving(folder / "photos") as site:
            for scenario in arguments.scenarios.split(","):
                results.append(compare(scenario, arguments, site, photos, folder))
    for result in results:
        ratios = "   ".join(f"{name} {result[name]:.2f}" for name in RATIOS if result[name] is not None)
        print(
            f"{result['scenario']:<8} {ratios or 'img2dataset did not finish'}"
            f"   memory_ratio {result['memory_ratio']:.2f}   PSNR {result['psnr_difference_db']:+.2f} dB"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
