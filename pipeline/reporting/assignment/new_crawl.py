"""Assign a later crawl to the prototypes of a run without training: tables, and a picture of the changes."""

from __future__ import annotations

import io
import time
from datetime import UTC, datetime
from typing import Any

from pyarrow import csv

from pipeline.config import digest
from pipeline.console import counted, say
from pipeline.errors import StorageError
from pipeline.paths import AssignmentPaths, RunPaths
from pipeline.records import Crawl
from pipeline.reporting.assignment.changes import Changes, change_tiles, changes_of, largest_changes
from pipeline.reporting.assignment.shards import assign_crawls
from pipeline.reporting.pictures.mosaic import draw_mosaic
from pipeline.reporting.pixels import png
from pipeline.reporting.provenance import versions
from pipeline.reporting.run import Run
from pipeline.reporting.tables.cluster_files import write_clusters_csv, write_clusters_parquet
from pipeline.reporting.tables.manifest import SCHEMA_VERSION as CLUSTERS_VERSION
from pipeline.reporting.tables.manifest import clusters_schema, loss_column, without_sources
from pipeline.storage import Storage, read_json, read_table, write_json

SCHEMA_VERSION = 2
"""Version of the format of ``assignment.json``."""


def check_model(storage: Storage, run: Run) -> None:
    """Raise StorageError if the model of the kept trial of `run` is missing."""
    checkpoint = run.checkpoint_key
    if not storage.exists(checkpoint):
        raise StorageError(
            f"{storage.uri(checkpoint)} is missing; run the job that trained it again, or choose another run"
        )


def assign_crawl(storage: Storage, run: Run, crawl: Crawl, examples: bool) -> dict[str, Any]:
    """Assign every image of `crawl` to a prototype of the kept trial of `run`, and compare the crawl with the run.

    A complete assignment of the same content is not made again.

    Args:
        storage: workspace with the shards of the crawl and the run.
        run: a reported run; the crawl may be one from which it learned.
        crawl: a complete crawl with at least one image, of the same image form as the run.
        examples: whether the tables may contain captions and sources.

    Returns:
        The content of ``assignment.json``, which is written last.

    Raises:
        PipelineError: the shards of the crawl no longer hold the images that were ingested, or the model or the tables
            of the run are missing.
    """
    run_paths = run.paths
    paths = run_paths.assignment(crawl.crawl_id)
    work = digest(SCHEMA_VERSION, CLUSTERS_VERSION, run.document["work"], crawl.digest, examples)
    if storage.exists(paths.marker):
        document = read_json(storage, paths.marker)
        if document.get("work") == work and set(_files(paths)) <= set(storage.list(paths.folder)):
            say("assign", f"{storage.uri(paths.folder)} is done already")
            return document
    schema = clusters_schema(run.config.clustering)
    prototypes = read_table(storage, run_paths.prototypes)
    run_losses = read_table(storage, run_paths.clusters, [loss_column(schema)])[loss_column(schema)].to_numpy()
    started = time.monotonic()
    clusters = assign_crawls(storage, run.checkpoint_key, [crawl], schema)
    seconds = time.monotonic() - started
    changes = changes_of(clusters, prototypes, run_losses)
    images = counted(clusters.num_rows, "image")
    subtitle = f"{images} of crawl {crawl.crawl_id}: share in the run to share in the crawl"
    picture = draw_mosaic(run.collection, subtitle, change_tiles(changes, prototypes), run.config.reporting.tile_px)
    document = {
        "schema_version": SCHEMA_VERSION,
        "work": work,
        **_describe(storage, run, crawl, changes, paths),
        "examples": examples,
        "seconds": round(seconds, 3),
        "images_per_second": round(clusters.num_rows / seconds, 3),
    }

    # Now the earlier assignment is replaced; its marker is deleted first.
    storage.delete(paths.marker)
    rows = clusters if examples else without_sources(clusters)
    write_clusters_parquet(storage, paths.clusters, rows)
    write_clusters_csv(storage, paths.spreadsheet, rows)
    storage.write_bytes(paths.changes, _csv(changes))
    storage.write_bytes(paths.picture, png(picture))
    write_json(storage, paths.marker, document)
    return document


def assignments_of(storage: Storage, run: RunPaths) -> list[AssignmentPaths]:
    """Return the keys of all assignments to the prototypes of `run`, complete or not."""
    crawls = {key.removeprefix(f"{run.assignments}/").split("/")[0] for key in storage.list(run.assignments)}
    return [run.assignment(crawl_id) for crawl_id in sorted(crawls)]


def delete_assignment(storage: Storage, paths: AssignmentPaths) -> None:
    """Delete all files of an assignment, its marker first."""
    for key in (paths.marker, *storage.list(paths.folder)):
        storage.delete(key)


def _files(paths: AssignmentPaths) -> list[str]:
    """Return the keys of the files of an assignment, except ``assignment.json``."""
    return [paths.clusters, paths.spreadsheet, paths.changes, paths.picture]


def _csv(changes: Changes) -> bytes:
    buffer = io.BytesIO()
    csv.write_csv(changes.table, buffer, csv.WriteOptions(quoting_style="none"))
    return buffer.getvalue()


def _describe(storage: Storage, run: Run, crawl: Crawl, changes: Changes, paths: AssignmentPaths) -> dict[str, Any]:
    """Return the description of images, changes and files for ``assignment.json``."""
    return {
        "collection": paths.collection,
        "run_id": paths.run_id,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "crawl": {"crawl_id": crawl.crawl_id, "digest": crawl.digest, "images": crawl.accepted},
        "model": {"k": run.selected.k, "seed": run.selected.seed, "method": run.config.clustering.method},
        "counts": {
            "records": crawl.records,
            "images": crawl.accepted,
            "cluster_sizes": changes.table["size"].to_pylist(),
            "unexplained": changes.unexplained,
        },
        "loss": {
            "mean": changes.mean_loss,
            "run_mean": changes.run_mean_loss,
            "unexplained_above": changes.unexplained_above,
        },
        "changes": largest_changes(changes),
        "paths": {
            "assignment": storage.uri(paths.folder),
            "clusters": storage.uri(paths.clusters),
            "spreadsheet": storage.uri(paths.spreadsheet),
            "changes": storage.uri(paths.changes),
            "picture": storage.uri(paths.picture),
            "checkpoint": storage.uri(run.checkpoint_key),
        },
        "versions": versions(),
    }
