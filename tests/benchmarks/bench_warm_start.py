"""Iterations until a new crawl is learned as well as from scratch, when training starts from the run before it.

    python tests/benchmarks/bench_warm_start.py [--json FILE]

A crawl with known content is cut in two. The job learns the first part, then both, once from scratch and once with
`--warm-start latest`; the seconds are those of training. The last measured table is in README.md beside this file.
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


def run_job(workspace: Path, source: Path, *more: str) -> dict[str, Any]:
    """The kept trial of a job over `source`, and its history."""
    command = [sys.executable, "jobs/cluster_collection.py", "--collection=c", f"--workspace={workspace}", f"--k={K}"]
    before = set(workspace.glob("c/runs/*/run.json"))
    subprocess.run(
        [*command, f"--source={source}", f"--image-size={SIDE}", *more], cwd=ROOT, check=True, stdout=sys.stderr
    )
    (marker,) = set(workspace.glob("c/runs/*/run.json")) - before
    (trial,) = marker.parent.glob("trials/*/trial.json")
    found: dict[str, Any] = json.loads(trial.read_text())
    return found


def iterations_to(history: list[dict[str, Any]], loss: float) -> int | None:
    """The end of the first window whose mean loss is no higher; None if none is."""
    return next((point["iteration"] for point in history if point["loss"] <= loss), None)


def main() -> None:
    """Print both runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7, help="of the crawl [7]")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    if not MAKE_CRAWL.exists():
        sys.exit(f"needs {MAKE_CRAWL}, which is not there")
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
        (everything,) = (path for path in crawl.iterdir() if path.is_dir())
        part = Path(folder) / "part"
        part.mkdir()
        for path in sorted(everything.glob("*.jpg"))[::2]:
            shutil.copy(path, part)
        scratch = run_job(Path(folder) / "scratch", everything)
        first = run_job(Path(folder) / "warm", part)
        warm = run_job(Path(folder) / "warm", everything, "--warm-start=latest")
    # The loss that both reach in the end.
    goal = max(scratch["history"][-1]["loss"], warm["history"][-1]["loss"])
    print(
        "| run | iterations in all | until a loss of "
        + f"{goal:.0f} | loss on all images | seconds |\n|---|---|---|---|---|"
    )
    found = {}
    for name, trial in (("the first part", first), ("both, from scratch", scratch), ("both, warm start", warm)):
        reached = None if trial is first else iterations_to(trial["history"], goal)
        found[name] = {"iterations": trial["iterations"], "until": reached, "loss": trial["loss"]}
        print(f"| {name} | {trial['iterations']} | {reached or ''} | {trial['loss']:.1f} | {trial['seconds']:.0f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
