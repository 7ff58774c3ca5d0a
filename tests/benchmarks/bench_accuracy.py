"""Accuracy of the clustering job on benchmarks of the DTI paper and on synthetic photo crawls with known content.

    python tests/benchmarks/bench_accuracy.py [NAME ...] [--workspace DIR]

NAME is one of mnist-test, mnist-1k, mnist-color, crawls-64, crawls-128, hard-30 and hard-40; default: all.

The script needs ../shared (digits, photographs, make_crawl.py). It does not repeat finished jobs, and it continues
interrupted ones. It writes the commands that it ran, the results and pictures to accuracy/README.md beside this file.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script, this file can only import from its own folder

from pipeline.clustering.metrics import nmi
from pipeline.clustering.trial import Trial
from pipeline.shards import read_shard
from pipeline.storage import LocalStorage

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
DIGITS = "../shared/data/mnist-test/t10k-images-idx3-ubyte.gz"
REPORT = Path(__file__).parent / "accuracy"
CRAWL_SEEDS = (7, 8, 9, 10, 11)
HARD_SEEDS = (7, 8, 9)


@dataclass(frozen=True)
class Experiment:
    """One or more jobs whose results form one section of the report."""

    title: str
    """Heading of the section."""
    paper: str
    """Result of the paper for DTI GMM, or the reason why there is none."""
    jobs: dict[str, list[str]]
    """Arguments of jobs/cluster_collection.py, by name of the collection."""
    prepare: list[list[str]] = field(default_factory=list)
    """Commands that create the sources."""
    truth: dict[str, str] = field(default_factory=dict)
    """Path to the labels.csv of a synthetic crawl, by name of the collection; labelled sources need none."""


def crawl_experiment(side: int, seeds: tuple[int, ...]) -> Experiment:
    """Return the experiment on synthetic crawls of 400 files at `side` px: default configuration, K = 12."""
    prepare, jobs, truth = [], {}, {}
    for seed in seeds:
        name, out = f"crawl-{seed}-{side}px", f"WORKSPACE/sources/crawl-{seed}"
        prepare.append([*MAKE_CRAWL, "--n", "400", "--seed", str(seed), "--out", out])
        jobs[name] = ["--source", f"{out}/trevifountain", "--k", "12", "--image-size", str(side)]
        truth[name] = f"{out}/labels.csv"
    title = f"Photographs: synthetic crawls of 8 views and 25 % noise, {side} px, default configuration, K = 12"
    return Experiment(title, "no result, it has no comparable collection", jobs, prepare, truth)


def hard_experiment(k: int, seeds: tuple[int, ...]) -> Experiment:
    """Return the experiment on crawls of 23 views, with strong changes of light and viewpoint, and half noise."""
    prepare, jobs, truth = [], {}, {}
    for seed in seeds:
        name, out = f"hard-{seed}-k{k}", f"WORKSPACE/sources/hard-{seed}"
        options = ["--views", "0", "--noise", "0.5", "--strength", "2", "--n", "800"]
        prepare.append([*MAKE_CRAWL, *options, "--seed", str(seed), "--out", out])
        jobs[name] = ["--source", f"{out}/trevifountain", "--k", str(k), "--image-size", "64"]
        truth[name] = f"{out}/labels.csv"
    title = f"Photographs: hard synthetic crawls of 23 views and 50 % noise, 64 px, default configuration, K = {k}"
    return Experiment(title, "no result, it has no comparable collection", jobs, prepare, truth)


MAKE_CRAWL = ["../shared/tools/make_crawl.py", "--photos", "../shared/data/photos"]
COLOR = "WORKSPACE/sources/mnist-color.npz"
COLOR_SCHEDULE = [
    *("--set", "clustering.schedule.max_iterations=[1500, 1500, 500]"),
    *("--set", "clustering.schedule.final_iterations=400"),
]
"""Schedule for 10,000 digits, of at most 500,000 image passes; the bounds in the configuration are for 70,000."""
EXPERIMENTS = {
    "mnist-test": Experiment(
        "MNIST-test: affine, morphological, TPS, K = 10",
        "ACC 97.8 on average over 10 runs, 98.0 for the run with the lowest loss (Table 1)",
        {"mnist-test": ["--config", "jobs/configs/mnist-test.yaml", "--source", DIGITS, "--seeds", "5"]},
    ),
    "mnist-1k": Experiment(
        "MNIST-1k: 1,000 digits drawn from MNIST-test",
        "ACC 80.8 on average, 87.1 for the run with the lowest loss (Table 2)",
        {"mnist-1k": ["--config", "jobs/configs/mnist-1k.yaml", "--source", DIGITS, "--seeds", "5"]},
    ),
    "mnist-color": Experiment(
        "Colour MNIST-test: colour, affine, TPS, K = 10",
        "ACC 96.0 on average, 95.8 for the run with the lowest loss, on colour MNIST with 70,000 digits (Table 2)",
        {"mnist-color": ["--config", "jobs/configs/mnist-color.yaml", "--source", COLOR, *COLOR_SCHEDULE]},
        [["jobs/mnist_variant.py", "--source", DIGITS, "--variant", "color", "--out", COLOR]],
    ),
    "crawls-64": crawl_experiment(64, CRAWL_SEEDS),
    "crawls-128": crawl_experiment(128, CRAWL_SEEDS),
    "hard-30": hard_experiment(30, HARD_SEEDS),
    "hard-40": hard_experiment(40, HARD_SEEDS),
}


def main() -> None:
    """Run the jobs that are not done, and write a report of all finished ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "experiments", nargs="*", metavar="NAME", help=f"any of {', '.join(EXPERIMENTS)} (default: all)"
    )
    parser.add_argument("--workspace", type=Path, default=Path("/tmp/accuracy"), help="folder for sources and results")
    arguments = parser.parse_args()
    if unknown := set(arguments.experiments) - set(EXPERIMENTS):
        parser.error(f"unknown experiments: {', '.join(sorted(unknown))}; choose from {', '.join(EXPERIMENTS)}")
    if not SHARED.exists():
        sys.exit(f"{SHARED} does not exist; it must contain the digits, the photographs and make_crawl.py")
    workspace = arguments.workspace.absolute()
    for name in arguments.experiments or EXPERIMENTS:
        run(EXPERIMENTS[name], workspace)
    write_report(workspace)


def run(experiment: Experiment, workspace: Path) -> None:
    """Run the commands of `experiment` that are not done."""
    for command in experiment.prepare:
        target = Path(with_workspace(command[command.index("--out") + 1], workspace))
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            execute(command, workspace)
    for collection, arguments in experiment.jobs.items():
        execute(job_command(collection, arguments), workspace)


def job_command(collection: str, arguments: list[str]) -> list[str]:
    """Return the command of the job of one collection, with the placeholder WORKSPACE for the workspace."""
    return ["jobs/cluster_collection.py", "--collection", collection, "--workspace", "WORKSPACE", *arguments]


def with_workspace(text: str, workspace: Path) -> str:
    """Return `text` with `workspace` instead of the placeholder WORKSPACE."""
    return text.replace("WORKSPACE", str(workspace))


def execute(command: list[str], workspace: Path) -> None:
    """Run a Python script with its arguments in the root of the repository."""
    print(f"$ python {shlex.join(command)}", flush=True)
    arguments = [sys.executable, *(with_workspace(word, workspace) for word in command)]
    subprocess.run(arguments, cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def write_report(workspace: Path) -> None:
    """Write the tables, loss curves and prototypes of all experiments with finished jobs."""
    REPORT.mkdir(exist_ok=True)
    parts = [
        "# Accuracy",
        "`tests/benchmarks/bench_accuracy.py` wrote this report after it had run the commands below on two shared CPU"
        " cores, so times are approximate. WORKSPACE stands for any folder. Training does not use labels. The seed of"
        " the trial that each job kept is in bold.",
    ]
    for name, experiment in EXPERIMENTS.items():
        runs = {collection: last_run(workspace / collection) for collection in experiment.jobs}
        if found := {collection: folder for collection, folder in runs.items() if folder is not None}:
            parts += section(name, experiment, found, workspace)
    (REPORT / "README.md").write_text("\n\n".join(parts) + "\n")
    print(f"report    {REPORT / 'README.md'}")


def last_run(collection: Path) -> Path | None:
    """Return the folder of the last finished run of a collection, or None without one."""
    runs = sorted(collection.glob("runs/*/run.json"), key=lambda path: path.stat().st_mtime)
    return runs[-1].parent if runs else None


def section(name: str, experiment: Experiment, runs: dict[str, Path], workspace: Path) -> list[str]:
    """Return the Markdown of one experiment; its pictures are written to the folder of the report."""
    commands = [*experiment.prepare, *(job_command(c, a) for c, a in experiment.jobs.items())]
    parts = [f"## {experiment.title}", f"DTI paper: {experiment.paper}."]
    parts.append("\n".join(f"    python {shlex.join(command)}" for command in commands))
    rows = [row for collection, run in runs.items() for row in trial_rows(collection, run)]
    parts.append(table(rows))
    if experiment.truth:
        truths = {c: Path(with_workspace(experiment.truth[c], workspace)) for c in runs}
        parts.append(table([crawl_row(c, run, truths[c], workspace) for c, run in runs.items()]))
    draw_curves(runs, REPORT / f"{name}-loss.png")
    parts.append(f"![Loss of each trial against its iterations]({name}-loss.png)")
    for collection, run in runs.items():
        shutil.copy(run / "mosaic.png", REPORT / f"{collection}.png")
        parts.append(f"![Prototypes of {collection}]({collection}.png)")
    return parts


def trial_rows(collection: str, run: Path) -> list[dict[str, Any]]:
    """Return one table row per trial, with the seed of the kept trial in bold."""
    document = json.loads((run / "run.json").read_text())
    rows = []
    for trial in document["trials"]:
        result = json.loads((run / "trials" / Trial(trial["k"], trial["seed"]).name / "trial.json").read_text())
        stages = ", ".join(f"{'+'.join(s['modules'][-1:]) or 'identity'} {s['iterations']}" for s in result["stages"])
        kept = (trial["k"], trial["seed"]) == (document["selected"]["k"], document["selected"]["seed"])
        row = {
            "collection": collection,
            "seed": f"**{trial['seed']}**" if kept else trial["seed"],
            "loss": f"{trial['loss']:.2f}",
            "image passes": f"{trial['image_passes']:,}",
            "minutes": f"{trial['seconds'] / 60:.0f}",
            "iterations by stage": stages,
        }
        if metrics := trial["metrics"]:
            row |= {"ACC": f"{100 * metrics['accuracy']:.2f} %", "NMI": f"{100 * metrics['nmi']:.2f} %"}
        rows.append(row)
    return rows


def crawl_row(collection: str, run: Path, labels_file: Path, workspace: Path) -> dict[str, Any]:
    """Return a row that compares the job's clusters, and those of K-means on pixels, with a synthetic crawl's views.

    Purity and NMI are computed over the images that show a view. Two views may be photographs of the same building; the
    purity by landmark counts them as one. K-means is fitted to all images.
    """
    with labels_file.open(newline="") as file:
        truth = {row["file"]: row for row in csv.DictReader(file)}
    clusters = pq.read_table(run / "clusters.parquet", columns=["image_id", "file_name", "cluster", "crawl_id"])
    rows = [row | truth[row["file_name"]] for row in clusters.to_pylist()]
    view_rows = [row for row in rows if row["kind"] == "view"]
    views = np.unique([row["view"] for row in view_rows], return_inverse=True)[1]
    landmarks = np.unique([landmark(row["view"]) for row in view_rows], return_inverse=True)[1]
    k = json.loads((run / "run.json").read_text())["selected"]["k"]
    assigned = np.array([row["cluster"] for row in view_rows])
    result = {
        "collection": collection,
        "images": len(rows),
        "of views": len(view_rows),
        "purity": f"{purity(views, assigned):.3f}",
        "by landmark": f"{purity(landmarks, assigned):.3f}",
        "NMI": f"{nmi(views, assigned):.3f}",
    }
    pixels = image_pixels(workspace, collection)
    all_pixels = np.stack([pixels[row["image_id"]] for row in rows])
    is_view = np.array([row["kind"] == "view" for row in rows])
    result["first clusters"] = first_clusters(run, rows, len(set(views)))
    by_kmeans = [pixel_kmeans(all_pixels, k, seed)[is_view] for seed in range(5)]
    result["K-means purity"] = value_range([purity(views, labels) for labels in by_kmeans])
    result["K-means NMI"] = value_range([nmi(views, labels) for labels in by_kmeans])
    return result


def first_clusters(run: Path, rows: list[dict[str, Any]], views: int) -> str:
    """Return how many of the first clusters by quality, ten or one for each view, show mostly one view."""
    quality = {row["cluster"]: row["quality"] for row in pq.read_table(run / "prototypes.parquet").to_pylist()}
    first = sorted(quality, key=lambda cluster: -quality[cluster])[: min(10, views)]
    right = 0
    for cluster in first:
        members = [row["view"] if row["kind"] == "view" else None for row in rows if row["cluster"] == cluster]
        view, count = Counter(members).most_common(1)[0] if members else (None, 0)
        right += view is not None and 2 * count > len(members)
    return f"{right} of {len(first)}"


def landmark(view: str) -> str:
    """Return the landmark of a view: ``sacre_coeur`` for ``sacre_coeur_51091044_3486849416``."""
    return view.rstrip("0123456789_")


def purity(classes: np.ndarray[Any, Any], clusters: np.ndarray[Any, Any]) -> float:
    """Return the share of the images that have the most frequent class of their cluster."""
    members: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for label, cluster in zip(classes.tolist(), clusters.tolist(), strict=True):
        members[cluster][label] += 1
    return sum(counter.most_common(1)[0][1] for counter in members.values()) / len(classes)


def image_pixels(workspace: Path, collection: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return the flattened pixels of all images of a collection, in [0, 1], by image id."""
    storage = LocalStorage(str(workspace))
    shards = [key for key in storage.list(f"{collection}/crawls") if key.endswith(".tar")]
    return {s.image_id: s.pixels().reshape(-1) / np.float32(255) for key in shards for s in read_shard(storage, key)}


def pixel_kmeans(pixels: np.ndarray[Any, Any], k: int, seed: int) -> np.ndarray[Any, Any]:
    """Return the cluster of each image under K-means on pixels, the best of ten initialisations."""
    from sklearn.cluster import KMeans

    labels: np.ndarray[Any, Any] = KMeans(k, n_init=10, random_state=seed).fit(pixels).labels_
    return labels


def value_range(values: list[float]) -> str:
    """Format the range of `values`, from the lowest to the highest."""
    return f"{min(values):.2f}–{max(values):.2f}"


def draw_curves(runs: dict[str, Path], path: Path) -> None:
    """Plot the loss of every trial against its iterations, with a dot at the end of each stage."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for collection, run in runs.items():
        for file in sorted(run.glob("trials/*/trial.json")):
            trial = json.loads(file.read_text())
            iterations = [point["iteration"] for point in trial["history"]]
            losses = [point["loss"] for point in trial["history"]]
            (line,) = axes.plot(iterations, losses, label=f"{collection}, seed {trial['seed']}", linewidth=1)
            ends = np.cumsum([stage["iterations"] for stage in trial["stages"]])
            axes.plot(ends, np.interp(ends, iterations, losses), ".", color=line.get_color())
    axes.set(xlabel="iterations (dots: ends of stages)", ylabel="negative log-likelihood per image, nats")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table with the columns of all rows, in the order in which they first appear."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
