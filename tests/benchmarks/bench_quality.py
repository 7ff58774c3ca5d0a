"""Whether the label-free quality of clusters finds the iconic views: precision on crawls whose noise is known.

    python tests/benchmarks/bench_quality.py [--seeds 7,8,9] [--image-size 64] [--workspace DIR]

needs ../shared (photographs, make_crawl.py). Each crawl of 400 files shows 8 views; a quarter of its images is noise.
The job clusters it into 12 prototypes; a cluster is right when most of its images show one and the same view. Printed
is which part of the first 5 and 10 clusters is right when they are ordered by quality, by its components, and by size.
A job that was done already is not run again.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a file, Python looks beside it only

from tests.benchmarks.bench_accuracy import Experiment, crawls, execute, filled, job_command, last_run, table

SCORES = ("quality", "detail", "explained", "sharpness", "median_margin", "size")
"""What clusters are ordered by, highest first: the score, its components and, to compare with, size."""
FIRST = (5, 10)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="7,8,9", help="of the made crawls [7,8,9]")
    parser.add_argument("--image-size", type=int, default=64, metavar="PX", help="side of the images [64]")
    parser.add_argument("--workspace", type=Path, default=Path("quality-workspace"), help="[quality-workspace]")
    arguments = parser.parse_args()
    seeds = tuple(int(seed) for seed in arguments.seeds.split(","))
    experiment, workspace = crawls(arguments.image_size, seeds), arguments.workspace.absolute()
    run(experiment, workspace)
    judged = {name: judge(workspace, name, filled(labels, workspace)) for name, labels in experiment.truth.items()}
    print(table([row for name, clusters in judged.items() for row in precision_rows(name, clusters)]))
    print()
    print(table([row for name, clusters in judged.items() for row in cluster_rows(name, clusters)]))


def run(experiment: Experiment, workspace: Path) -> None:
    """Make the crawls that are missing, and cluster and report those that are not yet."""
    for prepare, (collection, arguments) in zip(experiment.prepare, experiment.jobs.items(), strict=True):
        if not Path(filled(experiment.truth[collection], workspace)).exists():
            execute(prepare, workspace)
        execute(job_command(collection, arguments), workspace)


def judge(workspace: Path, collection: str, labels: str) -> list[dict[str, Any]]:
    """The clusters of a collection's last run: scores, what they show, and whether that is right."""
    with Path(labels).open(newline="") as file:
        shows = {row["file"]: row["view"] if row["kind"] == "view" else "noise" for row in csv.DictReader(file)}
    folder = last_run(workspace / collection)
    assert folder is not None
    members: dict[int, Counter[str]] = {}
    for row in pq.read_table(folder / "clusters.parquet", columns=["file_name", "cluster"]).to_pylist():
        members.setdefault(row["cluster"], Counter())[shows[row["file_name"]]] += 1
    clusters = pq.read_table(folder / "prototypes.parquet", columns=["cluster", *SCORES]).to_pylist()
    for row in clusters:
        counts = members.get(row["cluster"], Counter())
        row["shows"], most = counts.most_common(1)[0] if counts else ("nothing", 0)
        row["part"] = most / max(1, counts.total())
        row["right"] = row["shows"] not in ("noise", "nothing") and row["part"] > 0.5
    return clusters


def precision_rows(collection: str, clusters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per score: which part of the first clusters is right, and how many could be."""
    right = sum(row["right"] for row in clusters)
    rows = []
    for score in SCORES:
        first = sorted(clusters, key=lambda row: -1 if row[score] is None else row[score], reverse=True)
        precision = {f"precision at {n}": f"{sum(row['right'] for row in first[:n]) / n:.2f}" for n in FIRST}
        best = {f"possible at {n}": f"{min(n, right) / n:.2f}" for n in FIRST}
        rows.append({"collection": collection, "ordered by": score, **precision, **best})
    return rows


def cluster_rows(collection: str, clusters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per cluster, highest quality first."""
    return [
        {
            "collection": collection,
            "cluster": row["cluster"],
            "shows": row["shows"],
            "of its images": f"{row['part']:.0%}",
            "right": "yes" if row["right"] else "no",
            **{score: "" if row[score] is None else f"{row[score]:.3g}" for score in SCORES},
        }
        for row in sorted(clusters, key=lambda row: -row["quality"])
    ]


if __name__ == "__main__":
    main()
