"""The reporting stage: shards and the kept model become tables, pictures and a tracked run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pipeline.clustering.checkpoint import load_checkpoint, method_of
from pipeline.clustering.metrics import Metrics, evaluate
from pipeline.clustering.snapshots import snapshots_of
from pipeline.clustering.trial import TrialResult
from pipeline.config import JobConfig, digest
from pipeline.console import Laps, counted, rated, say
from pipeline.errors import StorageError
from pipeline.paths import RunPaths
from pipeline.records import Crawl
from pipeline.reporting.assignment.new_crawl import assignments_of, delete_assignment
from pipeline.reporting.assignment.shards import assign_crawls
from pipeline.reporting.findings import find
from pipeline.reporting.page.contents import page_of
from pipeline.reporting.page.render import render
from pipeline.reporting.pictures.mosaic import draw_mosaic
from pipeline.reporting.pictures.pixels import png
from pipeline.reporting.pictures.strips import publish_strips
from pipeline.reporting.pictures.timelapse import draw_timelapse, moments
from pipeline.reporting.report_files import is_moving, pictures, report_files
from pipeline.reporting.run import PastRun
from pipeline.reporting.tables.cluster_files import write_clusters_csv, write_clusters_parquet
from pipeline.reporting.tables.manifest import clusters_schema, prototypes_table, without_sources
from pipeline.reporting.tracking.record import is_recorded, record
from pipeline.reporting.tracking.runs import Tracking
from pipeline.reporting.tracking.server import tracking_uri, without_credentials
from pipeline.reporting.versions import versions
from pipeline.storage import Storage, read_json, write_table

SCHEMA_VERSION = 5
"""Of ``run.json``."""


def report(
    storage: Storage,
    config: JobConfig,
    run_id: str,
    crawls: list[Crawl],
    results: list[TrialResult],
    selected: TrialResult,
    reason: str,
) -> dict[str, Any]:
    """Assign every image to the prototypes of the kept trial, draw them, and record the run.

    A report that is there already, with all its files, is left alone; if it could not be tracked, only that is tried
    again. An earlier report of the run stays as it is until the new one is known to be possible. A run belongs to one
    job at a time: nothing keeps two jobs that report on the same run from mixing their files.

    Args:
        storage: workspace with the crawls' shards and the trials' checkpoints.
        config: of the job.
        run_id: of the clustering run.
        crawls: what was clustered; complete, of one image size.
        results: of all trials.
        selected: the one of them to report.
        reason: why it was selected, in a few words.

    Returns:
        The content of ``run.json``, which is written last.

    Raises:
        PipelineError: the shards no longer hold the images that were ingested, or the model is gone.
    """
    paths = RunPaths(config.collection, run_id)
    work = _digest(config, crawls, results, selected)
    earlier = (key for key in (paths.marker, paths.forgetting) if storage.exists(key))
    document = next((read_json(storage, key) for key in earlier), {})
    if document.get("work") == work and set(report_files(paths, selected.k, config)) <= set(storage.list(paths.folder)):
        say("report", f"{storage.uri(paths.folder)} is done already")
        if is_recorded(storage, config, document):
            return document
    else:
        # Which of several runs is the latest does not change when one is reported again.
        first = {name: value for name, value in document.items() if name == "created_at"}
        document = {"schema_version": SCHEMA_VERSION, "work": work}
        document |= _make(storage, config, paths, crawls, results, selected, reason) | first
    return record(storage, PastRun(run_id, config, crawls, results, selected, reason, document))


def closing_lines(document: dict[str, Any]) -> list[str]:
    """What the user needs after a job whose `report` returned `document`: a label and a place, or a command, per line.

    Example: ``page      /photos/workspace/rome/runs/run-1/report.html``. Where images have labels, how well the
    clusters agree with them stands first.
    """
    tracking = Tracking(**document["tracking"])
    mlflow = tracking.uri
    if tracking.error is not None:
        mlflow = f"not all is in {tracking.uri}, see the warning above; the same command tries again"
    elif tracking.uri.startswith("sqlite:"):
        mlflow = f"mlflow ui --backend-store-uri {shlex.quote(tracking.uri)}"
    lines = {}
    if metrics := document["metrics"]:
        scores = f"accuracy {metrics['accuracy']:.3f}, NMI {metrics['nmi']:.3f}"
        lines["metrics"] = f"{scores} on {counted(metrics['labelled_images'], 'labelled image')}"
    lines |= {"run": document["paths"]["run"], "page": document["paths"]["page"], "MLflow": mlflow}
    return [f"{label:<9} {line}" for label, line in lines.items()]


def _make(
    storage: Storage,
    config: JobConfig,
    paths: RunPaths,
    crawls: list[Crawl],
    results: Sequence[TrialResult],
    selected: TrialResult,
    reason: str,
) -> dict[str, Any]:
    """Publish tables, pictures and the page in place of an earlier report; return what ``run.json`` says of them."""
    checkpoint = paths.checkpoint(selected.trial.name)
    options = config.reporting
    laps = Laps()
    state = _kept_state(storage, paths, selected)
    method = method_of(state)
    schema = clusters_schema(config.clustering)
    clusters = assign_crawls(storage, checkpoint, crawls, schema)
    metrics: list[Metrics | None] = [None] * len(results)
    if clusters["label"].null_count < clusters.num_rows:
        for index, result in enumerate(results):
            assigned = clusters
            if result.trial != selected.trial:
                assigned = assign_crawls(storage, paths.checkpoint(result.trial.name), crawls, schema)
            metrics[index] = evaluate(assigned["label"].to_pylist(), assigned["cluster"].to_numpy(), result.k)
    laps.end("assign")
    findings = find(storage, checkpoint, config.collection, method, clusters, options)
    laps.end("survey")
    tiles = sorted(findings.tiles, key=lambda tile: tile.cluster)
    pictures, nearest = [tile.picture for tile in tiles], options.strip_images if options.examples else 0
    prototypes = prototypes_table(clusters, pictures, findings.proportions, findings.qualities, nearest)
    subtitle = f"{counted(selected.k, 'prototype')} of {counted(clusters.num_rows, 'image')}"
    mosaic = png(draw_mosaic(config.collection, subtitle, findings.tiles, options.tile_px))
    sizes = [tile.size for tile in tiles]
    document = _describe(storage, config, paths, crawls, results, selected, reason, sizes, metrics)
    tracked = without_credentials(tracking_uri(storage, config))
    shown = moments(snapshots_of(state), method.prototypes_KCHW(), selected, options.examples)
    timelapse = draw_timelapse(shown, [tile.cluster for tile in findings.tiles], options.tile_px)
    moving = timelapse if len(shown) > 1 else None
    page = render(page_of(findings, document, config, tracked, crawls, results, selected, moving))
    say("page", rated(selected.k, "cluster", laps.end("page")))

    # The earlier report ends here, its marker first.
    storage.delete(paths.marker)
    rows = clusters if options.examples else without_sources(clusters)
    write_clusters_parquet(storage, paths.clusters, rows)
    write_clusters_csv(storage, paths.spreadsheet, rows)
    write_table(storage, paths.prototypes, prototypes)
    storage.write_bytes(paths.mosaic, mosaic)
    storage.write_bytes(paths.timelapse, timelapse)
    storage.write_bytes(paths.page, page)
    if not options.examples:
        # They may name what is not to be shown any more; the same command makes them again.
        for assignment in assignments_of(storage, paths):
            delete_assignment(storage, assignment)
    laps.end("tables")
    drawn: list[str] = []
    if options.examples:
        drawn = publish_strips(storage, checkpoint, paths, clusters, tiles, options, is_moving(config))
    for key in set(storage.list(paths.pictures)) - set(drawn):
        storage.delete(key)  # of a larger K, or with photos that are not to be shown any more
    laps.end("pictures")
    return {**document, "seconds": laps.seconds}


def _kept_state(storage: Storage, paths: RunPaths, selected: TrialResult) -> dict[str, Any]:
    """The checkpoint of the trial to report. Raises PipelineError where it is gone or damaged."""
    name = selected.trial.name
    if not storage.exists(paths.checkpoint(name)):
        raise StorageError(
            f"{storage.uri(paths.checkpoint(name))} is missing; "
            f"delete {storage.uri(paths.trial(name))} and run the same command again"
        )
    return load_checkpoint(storage, paths.checkpoint(name))


def _describe(
    storage: Storage,
    config: JobConfig,
    paths: RunPaths,
    crawls: Sequence[Crawl],
    results: Sequence[TrialResult],
    selected: TrialResult,
    reason: str,
    sizes: list[int],
    metrics: Sequence[Metrics | None],
) -> dict[str, Any]:
    """What ``run.json`` says of the job, apart from where it was tracked."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    totals = ("k", "seed", "loss", "iterations", "image_passes", "seconds", "workers")
    shown = [None if trial is None else asdict(trial) for trial in metrics]
    return {
        "collection": config.collection,
        "run_id": paths.run_id,
        "created_at": now,
        "reported_at": now,
        "method": config.clustering.method,
        "transforms": config.clustering.transforms,
        "crawls": [{"crawl_id": crawl.crawl_id, "digest": crawl.digest, "images": crawl.accepted} for crawl in crawls],
        "counts": {
            "records": sum(crawl.records for crawl in crawls),
            "images": sum(crawl.accepted for crawl in crawls),
            "assigned": sum(sizes),
            "cluster_sizes": sizes,
        },
        "selected": {"k": selected.k, "seed": selected.seed, "loss": selected.loss, "reason": reason},
        "metrics": shown[results.index(selected)],
        "reporting": config.reporting.model_dump(mode="json"),
        "trials": [
            {**{name: getattr(result, name) for name in totals}, "metrics": trial_metrics}
            for result, trial_metrics in zip(results, shown, strict=True)
        ],
        "paths": {
            "run": storage.uri(paths.folder),
            "mosaic": storage.uri(paths.mosaic),
            "training": storage.uri(paths.timelapse),
            "animations": [storage.uri(key) for key in pictures(paths, selected.k, config) if key.endswith(".webp")],
            "page": storage.uri(paths.page),
            "strips": [storage.uri(key) for key in pictures(paths, selected.k, config) if key.endswith(".png")],
            "clusters": storage.uri(paths.clusters),
            "spreadsheet": storage.uri(paths.spreadsheet),
            "prototypes": storage.uri(paths.prototypes),
            "checkpoint": storage.uri(paths.checkpoint(selected.trial.name)),
            "config": storage.uri(paths.config),
        },
        "versions": versions(),
    }


def _digest(config: JobConfig, crawls: Sequence[Crawl], results: Sequence[TrialResult], selected: TrialResult) -> str:
    """Changes whenever the report would look different."""
    crawled = [(crawl.crawl_id, crawl.digest) for crawl in crawls]
    trained = [result.to_json() for result in results]
    settings = [config.reporting.model_dump(mode="json"), config.clustering.method, config.clustering.transforms]
    return digest(SCHEMA_VERSION, settings, crawled, trained, selected.trial.name)
