"""A reported run, written directly to storage, without Ray and training."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.config import ClusteringConfig, IngestConfig, JobConfig, ReportingConfig, dump_config
from pipeline.paths import CrawlPaths, RunPaths
from pipeline.records import Crawl
from pipeline.reporting.report_files import report_files
from pipeline.reporting.reported_runs import load_run
from pipeline.reporting.run import Run
from pipeline.reporting.tracking.runs import Tracking
from pipeline.reporting.tracking.server import default_uri
from pipeline.storage import LocalStorage, write_json
from tests.support.made_collection import BLUE, GREEN, RED, WHITE, Color, make_trial, trial_result

COLORS = (GREEN, WHITE, RED, BLUE)
"""Colours of the prototypes of the kept trial."""
WINDOWS = 300
"""Number of windows of the kept trial; its metrics exceed the limit of one request to an MLflow server."""


def make_report(
    storage: LocalStorage,
    collection: str,
    run_id: str = "run-1",
    created_at: str = "2026-01-01T00:00:00+00:00",
    tracked: str | None = None,
    colors: tuple[Color, ...] = COLORS,
    reporting: ReportingConfig | None = None,
) -> Run:
    """Write the run `run_id` of one crawl, with two trials: one of two prototypes, and the kept one with `colors`.

    The model is real; the files of the report contain only a few bytes each. The marker says that the attempt to record
    the run at `tracked` failed.
    """
    paths, crawl = RunPaths(collection, run_id), make_crawl_marker(storage, collection)
    config = JobConfig(
        collection=collection,
        source="/photos",
        workspace=storage.root,
        ingest=IngestConfig(image_size=16),
        clustering=ClusteringConfig(k=[2], select_k=2),
    )
    reporting = reporting or config.reporting
    storage.write_bytes(paths.config, dump_config(config).encode())
    for prototypes in (colors[:2], colors):
        make_trial(storage, paths, config.clustering, prototypes)
    results = [trial_result(2), trial_result(len(colors), WINDOWS)]
    for result in results:
        write_json(storage, paths.trial_marker(result.trial.name), result.to_json())
    reported_config = config.model_copy(update={"reporting": reporting})
    for key in report_files(Run(run_id, reported_config, [crawl], results, results[1], "elbow of the loss")):
        storage.write_bytes(key, b"content of " + key.encode())
    document: dict[str, Any] = {
        "run_id": run_id,
        "created_at": created_at,
        "crawls": [{"crawl_id": crawl.crawl_id, "digest": "as it was", "images": crawl.accepted}],
        "trials": [
            {"k": result.k, "seed": result.seed, "metrics": {"accuracy": 1 / result.k, "nmi": 0.5, "classes": 3}}
            for result in results
        ],
        "health": [],
        "selected": {"k": len(colors), "seed": 0, "reason": "elbow of the loss"},
        "reporting": reporting.model_dump(mode="json"),
        "tracking": asdict(Tracking(tracked or default_uri(storage), error="down")),
        "versions": {"commit": "c0ffee"},
    }
    write_json(storage, paths.marker, document)
    return load_run(storage, collection, run_id)


def make_crawl_marker(storage: LocalStorage, collection: str) -> Crawl:
    """Write the marker of a complete crawl without shards; return the crawl."""
    statistics = {"bytes": 5e6, "seconds": 2.5}
    crawl = Crawl(collection, "monday", 1, 7, 6, {"truncated": 1}, 16, "digest", statistics=statistics)
    write_json(storage, CrawlPaths(collection, "monday").marker, asdict(crawl))
    return crawl
