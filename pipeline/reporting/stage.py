"""The reporting stage: turn the shards and the kept model into tables, pictures, a page and a tracked run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline.clustering.checkpoint import load_checkpoint, method_of
from pipeline.clustering.health import Symptom, SymptomName, symptoms_of
from pipeline.clustering.metrics import Metrics, evaluate
from pipeline.clustering.snapshots import snapshots_of
from pipeline.config import digest
from pipeline.console import Laps, counted, rated, say
from pipeline.errors import StorageError
from pipeline.masking import mask
from pipeline.reporting.assignment.new_crawl import assignments_of, delete_assignment
from pipeline.reporting.assignment.shards import assign_crawls
from pipeline.reporting.cluster_pictures import publish_strips
from pipeline.reporting.findings import compute_findings
from pipeline.reporting.page.contents import page_of
from pipeline.reporting.page.render import render
from pipeline.reporting.pictures.mosaic import Tile, draw_mosaic
from pipeline.reporting.pictures.timelapse import draw_timelapse, frames_to_show
from pipeline.reporting.pixels import png
from pipeline.reporting.provenance import versions
from pipeline.reporting.report_files import picture_files, report_files
from pipeline.reporting.run import Run
from pipeline.reporting.tables.cluster_files import write_clusters_csv, write_clusters_parquet
from pipeline.reporting.tables.manifest import clusters_schema, prototypes_table, without_sources
from pipeline.reporting.tracking.runs import Tracking
from pipeline.reporting.tracking.server import tracking_uri
from pipeline.reporting.tracking.track import is_recorded, record_run
from pipeline.storage import Storage, read_json, write_table

SCHEMA_VERSION = 7
"""Version of the format of ``run.json``."""

CLEAR_QUALITY = 0.5
"""Minimum quality of a cluster that counts as a clear view; see tests/benchmarks/README.md."""
NO_CLEAR_VIEW: SymptomName = "no-clear-view"
"""Name of the symptom of a run without any clear view, which `found_sentence` states already."""


def report(storage: Storage, run: Run) -> dict[str, Any]:
    """Assign every image to a prototype of the kept trial, publish the report, and record the run in MLflow.

    A complete report of the same content is not made again; if recording it in MLflow failed, only that is repeated.
    Everything is computed before the first file of an earlier report is replaced. Only one job at a time may report
    on a run: there is no lock that would keep two jobs from mixing their files.

    Args:
        storage: workspace with the shards of the crawls and the checkpoints of the trials.
        run: the run to report; its `document` is not used.

    Returns:
        The content of ``run.json``, which is written last.

    Raises:
        PipelineError: the shards no longer hold the images that were ingested, or the model is missing.
    """
    paths, work = run.paths, _digest(run)
    earlier_keys = (key for key in (paths.marker, paths.forgetting) if storage.exists(key))
    document = next((read_json(storage, key) for key in earlier_keys), {})
    if document.get("work") == work and set(report_files(run)) <= set(storage.list(paths.folder)):
        say("report", f"{storage.uri(paths.folder)} is done already")
        if is_recorded(storage, run.config, document):
            return document
    else:
        # Keep the time of the first report, so that reporting a run again does not make it the latest one.
        first_report = {name: value for name, value in document.items() if name == "created_at"}
        document = {"schema_version": SCHEMA_VERSION, "work": work} | _publish(storage, run) | first_report
    return record_run(storage, replace(run, document=document))


def closing_lines(document: dict[str, Any]) -> list[str]:
    """Return the lines that a job prints after a report, each with a label and a text.

    The first lines state what may be wrong with the result. The next line summarises it in one sentence. If images have
    labels, a line states how well the clusters agree with them. The other lines state where the results are, such as
    ``page      /photos/workspace/rome/runs/run-1/report.html``.

    Args:
        document: content of ``run.json``.
    """
    tracking = Tracking(**document["tracking"])
    mlflow = tracking.uri
    if tracking.error is not None:
        mlflow = f"not everything is recorded in {tracking.uri}; see the warning above, and run the same command again"
    elif tracking.uri.startswith("sqlite:"):
        mlflow = f"mlflow ui --backend-store-uri {shlex.quote(tracking.uri)}"
    lines = {"found": found_sentence(document["counts"])}
    if metrics := document["metrics"]:
        scores = f"accuracy {metrics['accuracy']:.3f}, NMI {metrics['nmi']:.3f}"
        lines["metrics"] = f"{scores} on {counted(metrics['labelled_images'], 'labelled image')}"
    symptoms = [("check", symptom["text"]) for symptom in document["health"] if symptom["name"] != NO_CLEAR_VIEW]
    lines |= {"run": document["paths"]["run"], "page": document["paths"]["page"], "MLflow": mlflow}
    return [f"{label:<9} {line}" for label, line in [*symptoms, *lines.items()]]


def found_sentence(counts: dict[str, Any]) -> str:
    """Return one sentence that summarises a report, given the ``counts`` of its ``run.json``."""
    clear, images = counts["clear_clusters"], counts["assigned"]
    clusters = counted(len(counts["cluster_sizes"]), "cluster")
    if not clear:
        return (
            f"none of {clusters} of {counted(images, 'image')} is a clear view (quality {CLEAR_QUALITY} or more); the "
            "page shows all of them"
        )
    share = counts["clear_images"] / max(1, images)
    views, verb = ("is a clear view", "holds") if clear == 1 else ("are clear views", "hold")
    return (
        f"{clear} of {clusters} {views} (quality {CLEAR_QUALITY} or more) and {verb} {share:.0%} of "
        f"{counted(images, 'image')}"
    )


def _publish(storage: Storage, run: Run) -> dict[str, Any]:
    """Replace an earlier report by new tables, pictures and a new page; return their description for ``run.json``."""
    paths, options, selected = run.paths, run.config.reporting, run.selected
    laps = Laps()
    state = _kept_state(storage, run)
    method = method_of(state)
    clusters, metrics = _assign(storage, run)
    laps.end("assign")
    findings = compute_findings(storage, run, method, clusters)
    laps.end("survey")
    tiles = sorted(findings.tiles, key=lambda tile: tile.cluster)
    pictures, nearest = [tile.picture for tile in tiles], options.strip_images if options.examples else 0
    scores = [asdict(quality) for quality in findings.qualities]
    prototypes = prototypes_table(clusters, pictures, findings.proportions, scores, nearest)
    subtitle = f"{counted(selected.k, 'prototype')} of {counted(clusters.num_rows, 'image')}"
    mosaic = png(draw_mosaic(run.collection, subtitle, findings.tiles, options.tile_px))
    document = _describe(storage, run, tiles, metrics)
    frames = frames_to_show(snapshots_of(state), method.prototypes_KCHW(), selected, options.examples)
    timelapse = draw_timelapse(frames, [tile.cluster for tile in findings.tiles], options.tile_px)
    uri = mask(tracking_uri(storage, run.config))
    page = render(page_of(replace(run, document=document), findings, uri, timelapse if len(frames) > 1 else None))
    say("page", rated(selected.k, "cluster", laps.end("page")))

    # From here on the earlier report is replaced; its marker is deleted first.
    storage.delete(paths.marker)
    rows = clusters if options.examples else without_sources(clusters)
    write_clusters_parquet(storage, paths.clusters, rows)
    write_clusters_csv(storage, paths.spreadsheet, rows)
    write_table(storage, paths.prototypes, prototypes)
    storage.write_bytes(paths.mosaic, mosaic)
    storage.write_bytes(paths.timelapse, timelapse)
    storage.write_bytes(paths.page, page)
    if not options.examples:
        # Assignments may contain captions and sources, which must no longer be shown; the job that made them can make
        # them again without these.
        for assignment in assignments_of(storage, paths):
            delete_assignment(storage, assignment)
    laps.end("tables")
    if options.examples:
        publish_strips(storage, run, clusters, tiles)
    for key in set(storage.list(paths.pictures)) - set(picture_files(run)):
        storage.delete(key)  # pictures of a larger K, or with photos that must no longer be shown
    laps.end("pictures")
    return {**document, "seconds": laps.seconds}


def _kept_state(storage: Storage, run: Run) -> dict[str, Any]:
    """Return the checkpoint of the kept trial. Raises PipelineError if it is missing or damaged."""
    if not storage.exists(run.checkpoint_key):
        raise StorageError(
            f"{storage.uri(run.checkpoint_key)} is missing; "
            f"delete {storage.uri(run.paths.trial(run.selected.trial.name))} and run the same command again"
        )
    return load_checkpoint(storage, run.checkpoint_key)


def _assign(storage: Storage, run: Run) -> tuple[pa.Table, list[Metrics | None]]:
    """Return the clusters table of the kept trial, and the metrics of each trial: None if no image has a label."""
    schema = clusters_schema(run.config.clustering)
    clusters = assign_crawls(storage, run.checkpoint_key, run.crawls, schema)
    metrics: list[Metrics | None] = [None] * len(run.results)
    if clusters["label"].null_count < clusters.num_rows:
        for index, result in enumerate(run.results):
            assigned = clusters
            if result.trial != run.selected.trial:
                checkpoint_key = run.paths.checkpoint(result.trial.name)
                assigned = assign_crawls(storage, checkpoint_key, run.crawls, schema)
            metrics[index] = evaluate(assigned["label"].to_pylist(), assigned["cluster"].to_numpy(), result.k)
    return clusters, metrics


def _describe(storage: Storage, run: Run, tiles: Sequence[Tile], metrics: Sequence[Metrics | None]) -> dict[str, Any]:
    """Return the content of ``run.json``, except where the run is tracked."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    paths, crawls, selected = run.paths, run.crawls, run.selected
    clear = [tile.size for tile in tiles if tile.quality >= CLEAR_QUALITY]
    symptoms = symptoms_of(selected, run.results)
    if not clear:
        symptoms.insert(0, Symptom(NO_CLEAR_VIEW, f"no cluster is a clear view (quality {CLEAR_QUALITY} or more)"))
    totals = ("k", "seed", "loss", "iterations", "image_passes", "seconds", "workers")
    scores = [None if trial is None else asdict(trial) for trial in metrics]
    pictures = picture_files(run)
    return {
        "collection": run.collection,
        "run_id": run.run_id,
        "created_at": now,
        "reported_at": now,
        "method": run.config.clustering.method,
        "transforms": run.config.clustering.transforms,
        "crawls": [{"crawl_id": crawl.crawl_id, "digest": crawl.digest, "images": crawl.accepted} for crawl in crawls],
        "counts": {
            "records": sum(crawl.records for crawl in crawls),
            "images": sum(crawl.accepted for crawl in crawls),
            "assigned": sum(tile.size for tile in tiles),
            "cluster_sizes": [tile.size for tile in tiles],
            "clear_clusters": len(clear),
            "clear_images": sum(clear),
        },
        "health": [asdict(symptom) | {"clusters": list(symptom.clusters)} for symptom in symptoms],
        "selected": {"k": selected.k, "seed": selected.seed, "loss": selected.loss, "reason": run.reason},
        "metrics": scores[run.results.index(selected)],
        "reporting": run.config.reporting.model_dump(mode="json"),
        "trials": [
            {**{name: getattr(result, name) for name in totals}, "metrics": trial_scores}
            for result, trial_scores in zip(run.results, scores, strict=True)
        ],
        "paths": {
            "run": storage.uri(paths.folder),
            "mosaic": storage.uri(paths.mosaic),
            "training": storage.uri(paths.timelapse),
            "animations": [storage.uri(key) for key in pictures if key.endswith(".webp")],
            "page": storage.uri(paths.page),
            "strips": [storage.uri(key) for key in pictures if key.endswith(".png")],
            "clusters": storage.uri(paths.clusters),
            "spreadsheet": storage.uri(paths.spreadsheet),
            "prototypes": storage.uri(paths.prototypes),
            "checkpoint": storage.uri(run.checkpoint_key),
            "config": storage.uri(paths.config),
        },
        "versions": versions(),
    }


def _digest(run: Run) -> str:
    """Return a digest that changes whenever the report would look different."""
    crawls = [(crawl.crawl_id, crawl.digest) for crawl in run.crawls]
    results = [result.to_json() for result in run.results]
    clustering = run.config.clustering
    settings = [run.config.reporting.model_dump(mode="json"), clustering.method, clustering.transforms]
    return digest(SCHEMA_VERSION, settings, crawls, results, run.selected.trial.name)
