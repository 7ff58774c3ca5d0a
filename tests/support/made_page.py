"""Pages of generated collections, of any size and with any captions and links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.clustering.health import symptoms_of
from pipeline.clustering.snapshots import snapshot
from pipeline.clustering.trial import ClusterRecord, HistoryPoint, StageRecord, TrialResult
from pipeline.config import ClusteringConfig, JobConfig, Method, ReportingConfig
from pipeline.records import TIMESTAMP, Crawl
from pipeline.reporting.findings import Findings
from pipeline.reporting.page.contents import page_of
from pipeline.reporting.page.render import Page
from pipeline.reporting.pictures.mosaic import Tile, ordered
from pipeline.reporting.pictures.thumbnails import thumbnail
from pipeline.reporting.pictures.timelapse import draw_timelapse
from pipeline.reporting.pixels import to_images
from pipeline.reporting.run import Run
from pipeline.reporting.survey.examples import (
    MAX_UNEXPLAINED,
    example_budget,
    examples_of,
    farthest_rows,
    unexplained_rows,
)
from pipeline.reporting.survey.quality import quality_of
from pipeline.reporting.survey.sums import ClusterSums
from pipeline.reporting.survey.survey import Thumbnails, image_keys
from pipeline.reporting.tables.manifest import by_cluster, clusters_schema, clusters_table, loss_column

SIDE = 96
DIFFERENT = 60
"""Number of different thumbnails; a large page shows each of them several times."""


def made_clusters(
    k: int,
    images: int,
    captions: Sequence[str] = ("a view",),
    links: Sequence[str] = ("https://example.org/photo",),
    method: Method = "dti-gmm",
) -> pa.Table:
    """Return a table of `images` rows in `k` clusters of decreasing size; captions and links are used in turn."""
    rng = np.random.default_rng(0)
    schema = clusters_schema(ClusteringConfig(method=method, transforms=["color", "projective"]))
    share = 1 / np.arange(1, k + 1)
    sizes = np.floor(images * share / share.sum()).astype(int)
    sizes[0] += images - sizes.sum()
    cluster = np.repeat(np.arange(k), sizes).astype(np.int32)
    loss = rng.gamma(4.0, 250.0, images).astype(np.float32) - 5000
    given: dict[str, Any] = {
        "image_id": [f"{i:016x}" for i in range(images)],
        "caption": [captions[i % len(captions)] for i in range(images)],
        "source_url": [links[i % len(links)] for i in range(images)],
        "taken_at": pa.array(1_400_000_000_000 + 86_400_000 * rng.integers(0, 2000, images), pa.int64()).cast(
            TIMESTAMP
        ),
        "hashtags": [[f"tag{c}", "rome"] for c in cluster],
        "crawl_id": ["monday"] * images,
        "shard": np.zeros(images, np.int32),
        "cluster": cluster,
        loss_column(schema): loss,
        "posterior": np.ones(images, np.float32),
        "runner_up": ((cluster + 1) % k).astype(np.int32),
        "margin": np.ones(images, np.float32),
    }
    columns = [pa.array(given[f.name], f.type) if f.name in given else pa.nulls(images, f.type) for f in schema]
    return clusters_table([pa.table(columns, schema=schema)], schema)


def made_findings(clusters: pa.Table, k: int, options: ReportingConfig) -> Findings:
    """Return findings on `clusters` whose pictures are noise, so that thumbnails have their maximum size in bytes."""
    rng = np.random.default_rng(1)
    budget = example_budget(k, options.page_images if options.examples else 0)
    noise = rng.integers(0, 256, (DIFFERENT, SIDE, SIDE, 3), np.uint8)
    files = [thumbnail(picture, budget.form) for picture in noise]
    members_by_cluster = by_cluster(clusters, k)
    examples = (
        {c: examples_of(members, budget.examples) for c, members in enumerate(members_by_cluster)}
        if budget.examples
        else {}
    )
    threshold, unexplained = unexplained_rows(clusters)
    worst = farthest_rows(unexplained, MAX_UNEXPLAINED if examples else 0)
    tables = [
        worst,
        *(rows for chosen in examples.values() for rows in (chosen.nearest, chosen.random, chosen.farthest)),
    ]
    keys = [key for rows in tables for key in image_keys(rows)]
    thumbnails = {
        key: Thumbnails(*(files[(3 * i + j) % DIFFERENT] for j in range(3)))
        for i, key in enumerate(dict.fromkeys(keys))
    }
    photos = torch.from_numpy(noise).permute(0, 3, 1, 2).float() / 255
    tiles, qualities, sums = [], [], []
    for cluster, members in enumerate(members_by_cluster):
        size = members.num_rows
        blend = (cluster + 1) / (k + 1)
        images = photos[:2]
        part = ClusterSums.zeros((3, SIDE, SIDE))
        if size:
            part.add(images, images * blend, images, images[0])
        quality = quality_of(part, images[0], 1.0)
        sums.append(part)
        qualities.append(quality)
        tiles.append(Tile(cluster, size, size / clusters.num_rows, noise[cluster % DIFFERENT], quality.quality))
    return Findings(
        clusters=clusters,
        tiles=ordered(tiles, options.order_by),
        qualities=qualities,
        proportions=[1 / k] * k,
        sums=sums,
        examples=examples,
        unexplained_above=threshold,
        unexplained=unexplained.num_rows,
        worst=worst,
        thumbnails=thumbnails,
        form=budget.form,
    )


def made_trial(k: int, seed: int = 0, windows: int = 60) -> TrialResult:
    """Return a trial with a decreasing loss and a few reassignments."""
    history = [
        HistoryPoint(30 * i, -4000 - 30 * k + 900 / i + 5 * seed, 1e-3, 1, int(i % 9 == 3), 0.3 - 0.1 / i, 0.01)
        for i in range(1, windows + 1)
    ]
    stages = [StageRecord([], 600, "converged"), StageRecord(["color"], 30 * windows - 600, "max_iterations")]
    clusters = [ClusterRecord(20, (index + 1) % k, 0.5) for index in range(k)]
    return TrialResult(k, seed, history[-1].loss, 30 * windows, 1920 * windows, 321.0, 1, stages, history, clusters)


def made_timelapse(findings: Findings, result: TrialResult) -> bytes:
    """Return the animation of a training with three snapshots and the prototypes of `findings`."""
    order = [tile.cluster for tile in findings.tiles]
    pictures = to_images([tile.picture for tile in sorted(findings.tiles, key=lambda tile: tile.cluster)])
    snapshots = [
        snapshot(pictures * part, window, 30 * window, result.stages[-1].modules)
        for window, part in ((0, 0.4), (20, 0.7), (60, 1.0))
    ]
    return draw_timelapse(snapshots, order, 64)


def made_page(
    k: int = 5,
    images: int = 200,
    collection: str = "rome",
    captions: Sequence[str] = ("a view",),
    links: Sequence[str] = ("https://example.org/photo",),
    method: Method = "dti-gmm",
    timelapse: bytes | None = None,
    **options: Any,
) -> Page:
    """Return a page of `k` clusters with `images` images in total; `options` are fields of `ReportingConfig`."""
    reporting = ReportingConfig(**options)
    config = JobConfig(collection=collection, stages=["report"], reporting=reporting)
    clusters = made_clusters(k, images, captions, links, method)
    findings = made_findings(clusters, k, reporting)
    crawl = Crawl(collection, "monday", 1, images + 30, images, {"not_an_image": 20, "duplicate": 10}, SIDE, "digest")
    results = [made_trial(other, seed) for other in (max(1, k // 2), k, 2 * k) for seed in (0, 1)]
    selected = results[2]
    document = {
        "collection": collection,
        "run_id": "run-1",
        "reported_at": "2026-05-17T12:00:00+00:00",
        "method": method,
        "transforms": ["color", "projective"],
        "crawls": [{"crawl_id": "monday", "digest": "digest", "images": images}],
        "counts": {
            "records": images + 30,
            "images": images,
            "assigned": images,
            "cluster_sizes": [tile.size for tile in sorted(findings.tiles, key=lambda tile: tile.cluster)],
        },
        "health": [asdict(symptom) for symptom in symptoms_of(selected, results)],
        "selected": {"k": k, "seed": 0, "loss": selected.loss, "reason": "the elbow of the loss"},
        "metrics": None,
        "trials": [
            {
                **{n: getattr(r, n) for n in ("k", "seed", "loss", "iterations", "image_passes", "seconds")},
                "metrics": None,
            }
            for r in results
        ],
        "paths": {"run": "/w/rome/runs/run-1", "training": "/w/rome/runs/run-1/training.webp"},
        "versions": {"python": "3.11", "visual-trends": None},
    }
    run = Run("run-1", config, [crawl], results, selected, "the elbow of the loss", document)
    return page_of(run, findings, "sqlite:///w/mlflow.db", timelapse or made_timelapse(findings, selected))
