"""Number of training iterations on a grown collection, from scratch and with a warm start from the run before.

    python tests/benchmarks/bench_warm_start.py [--json FILE]

The script needs ../shared. It divides a synthetic crawl into two parts. The job trains on the first part, and then on
both parts, once from scratch and once with `--warm-start latest`. The seconds are those of training. README.md beside
this file has the last measured table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MAKE_CRAWL = ROOT.parent / "shared/tools/make_crawl.py"
PHOTOS = ROOT.parent / "shared/data/photos"
K, SIDE = 12, 32


def run_job(workspace: Path, source: Path, *options: str) -> dict[str, Any]:
    """Run the job on `source` with additional `options`; return the content of trial.json, with the history."""
    command = [sys.executable, "jobs/cluster_collection.py", "--collection=c", f"--workspace={workspace}", f"--k={K}"]
    before = set(workspace.glob("c/runs/*/run.json"))
    subprocess.run(
        [*command, f"--source={source}", f"--image-size={SIDE}", *options], cwd=ROOT, check=True, stdout=sys.stderr
    )
    (marker,) = set(workspace.glob("c/runs/*/run.json")) - before
    (trial,) = marker.parent.glob("trials/*/trial.json")
    result: dict[str, Any] = json.loads(trial.read_text())
    return result


def iterations_to(history: list[dict[str, Any]], loss: float) -> int | None:
    """Return the last iteration of the first window whose mean loss is at most `loss`; None if there is none."""
    return next((point["iteration"] for point in history if point["loss"] <= loss), None)


def main() -> None:
    """Run the three trainings, and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7, help="seed of the crawl (default: 7)")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    if not MAKE_CRAWL.exists():
        sys.exit(f"{MAKE_CRAWL} does not exist; it is needed to generate the crawl")
    with tempfile.TemporaryDirectory() as folder:
        crawl = Path(folder) / "crawl"
        options: list[str | Path] = [
            "--photos",
            PHOTOS,
            "--out",
            crawl,
            "--views=8",
            "--noise=0.25",
            f"--seed={arguments.seed}",
        ]
        subprocess.run([sys.executable, MAKE_CRAWL, *options], check=True, stdout=sys.stderr)
        (complete,) = (path for path in crawl.iterdir() if path.is_dir())
        part = Path(folder) / "part"
        part.mkdir()
        for path in sorted(complete.glob("*.jpg"))[::2]:
            shutil.copy(path, part)
        scratch = run_job(Path(folder) / "scratch", complete)
        first = run_job(Path(folder) / "warm", part)
        warm = run_job(Path(folder) / "warm", complete, "--warm-start=latest")
    # The loss that both runs reach.
    goal = max(scratch["history"][-1]["loss"], warm["history"][-1]["loss"])
    print(
        f"| run | total iterations | iterations to a loss of {goal:.0f} | loss on all images | seconds |"
        "\n|---|---|---|---|---|"
    )
    results = {}
    for name, trial in (("the first part", first), ("both, from scratch", scratch), ("both, warm start", warm)):
        reached = None if trial is first else iterations_to(trial["history"], goal)
        results[name] = {"iterations": trial["iterations"], "until": reached, "loss": trial["loss"]}
        print(f"| {name} | {trial['iterations']} | {reached or ''} | {trial['loss']:.1f} | {trial['seconds']:.0f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
