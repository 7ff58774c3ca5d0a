"""Precision of the clusters' quality score, which uses no labels, at finding the iconic views of synthetic crawls.

    python tests/benchmarks/bench_quality.py [--seeds 7,8,9] [--image-size 64] [--workspace DIR]

The script needs ../shared (photographs, make_crawl.py). Each crawl of 400 files shows 8 views, and a quarter of its
images is noise. The job clusters a crawl into 12 prototypes. A cluster is correct if most of its images show the same
view. The script prints the share of correct clusters among the first 5 and the first 10, ordered by quality, by each
component of quality, and by size. It does not repeat finished jobs.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script, this file can only import from its own folder

from tests.benchmarks.bench_accuracy import (
    Experiment,
    crawl_experiment,
    execute,
    job_command,
    last_run,
    table,
    with_workspace,
)

SCORES = ("quality", "detail", "explained", "sharpness", "median_margin", "size")
"""Columns by which clusters are ordered, highest value first: the score, its components and, for comparison, size."""
FIRST = (5, 10)
"""Numbers of first clusters for which precision is printed."""


def main() -> None:
    """Run the jobs that are not done, and print the precision and all clusters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="7,8,9", help="seeds of the crawls (default: 7,8,9)")
    parser.add_argument("--image-size", type=int, default=64, metavar="PX", help="side of the images (default: 64)")
    parser.add_argument(
        "--workspace",
        type=Path,
        default=Path("quality-workspace"),
        help="folder for sources and results (default: quality-workspace)",
    )
    arguments = parser.parse_args()
    seeds = tuple(int(seed) for seed in arguments.seeds.split(","))
    experiment, workspace = crawl_experiment(arguments.image_size, seeds), arguments.workspace.absolute()
    run(experiment, workspace)
    labels = {name: Path(with_workspace(path, workspace)) for name, path in experiment.truth.items()}
    clusters = {name: evaluate_clusters(workspace, name, path) for name, path in labels.items()}
    print(table([row for name, rows in clusters.items() for row in precision_rows(name, rows)]))
    print()
    print(table([row for name, rows in clusters.items() for row in cluster_rows(name, rows)]))


def run(experiment: Experiment, workspace: Path) -> None:
    """Create the missing crawls, and run the jobs that are not done."""
    for prepare, (collection, arguments) in zip(experiment.prepare, experiment.jobs.items(), strict=True):
        if not Path(with_workspace(experiment.truth[collection], workspace)).exists():
            execute(prepare, workspace)
        execute(job_command(collection, arguments), workspace)


def evaluate_clusters(workspace: Path, collection: str, labels_file: Path) -> list[dict[str, Any]]:
    """Return the clusters of a collection's last run, with their scores and their agreement with the labels.

    Added are `shows`, the most frequent content of the images (a view, noise or nothing), `part`, its share of the
    images, and `right`, whether the cluster is correct.
    """
    with labels_file.open(newline="") as file:
        contents = {row["file"]: row["view"] if row["kind"] == "view" else "noise" for row in csv.DictReader(file)}
    folder = last_run(workspace / collection)
    assert folder is not None
    members: dict[int, Counter[str]] = {}
    for row in pq.read_table(folder / "clusters.parquet", columns=["file_name", "cluster"]).to_pylist():
        members.setdefault(row["cluster"], Counter())[contents[row["file_name"]]] += 1
    clusters = pq.read_table(folder / "prototypes.parquet", columns=["cluster", *SCORES]).to_pylist()
    for row in clusters:
        counts = members.get(row["cluster"], Counter())
        row["shows"], most = counts.most_common(1)[0] if counts else ("nothing", 0)
        row["part"] = most / max(1, counts.total())
        row["right"] = row["shows"] not in ("noise", "nothing") and row["part"] > 0.5
    return clusters


def precision_rows(collection: str, clusters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per score: the share of correct clusters among the first ones, and the largest possible share."""
    right = sum(row["right"] for row in clusters)
    rows = []
    for score in SCORES:
        first = sorted(clusters, key=lambda row: -1 if row[score] is None else row[score], reverse=True)
        precision = {f"precision at {n}": f"{sum(row['right'] for row in first[:n]) / n:.2f}" for n in FIRST}
        best = {f"possible at {n}": f"{min(n, right) / n:.2f}" for n in FIRST}
        rows.append({"collection": collection, "ordered by": score, **precision, **best})
    return rows


def cluster_rows(collection: str, clusters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per cluster, highest quality first."""
    return [
        {
            "collection": collection,
            "cluster": row["cluster"],
            "shows": row["shows"],
            "share of its images": f"{row['part']:.0%}",
            "correct": "yes" if row["right"] else "no",
            **{score: "" if row[score] is None else f"{row[score]:.3g}" for score in SCORES},
        }
        for row in sorted(clusters, key=lambda row: -row["quality"])
    ]


if __name__ == "__main__":
    main()
