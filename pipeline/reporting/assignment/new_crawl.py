"""A crawl that came after a run, assigned to its prototypes without training: tables, and a picture of what changed."""

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
from pipeline.reporting.pictures.pixels import png
from pipeline.reporting.run import PastRun
from pipeline.reporting.tables.cluster_files import write_clusters_csv, write_clusters_parquet
from pipeline.reporting.tables.manifest import SCHEMA_VERSION as CLUSTERS_VERSION
from pipeline.reporting.tables.manifest import clusters_schema, loss_column, without_sources
from pipeline.reporting.versions import versions
from pipeline.storage import Storage, read_json, read_table, write_json

SCHEMA_VERSION = 1
"""Of ``assignment.json``."""


def check_model(storage: Storage, run: PastRun) -> None:
    """Raise StorageError where the model of the kept trial of `run` is gone."""
    checkpoint = RunPaths(run.config.collection, run.run_id).checkpoint(run.selected.trial.name)
    if not storage.exists(checkpoint):
        raise StorageError(
            f"{storage.uri(checkpoint)} is missing; run the job that trained it again, or choose another run"
        )


def assign_crawl(storage: Storage, run: PastRun, crawl: Crawl, examples: bool) -> dict[str, Any]:
    """Assign every image of `crawl` to the prototypes of the kept trial of `run`, and say what changed.

    An assignment that is there already, with all its files, is left alone.

    Args:
        storage: workspace with the crawl's shards and the run.
        run: its report; the crawl may be one of those that it learned from.
        crawl: complete, with at least one image, of the run's image form.
        examples: whether the tables may name captions and sources.

    Returns:
        The content of ``assignment.json``, which is written last.

    Raises:
        PipelineError: the crawl's shards no longer hold the images that were ingested, or the model or the tables of
            the run are gone.
    """
    run_paths = RunPaths(run.config.collection, run.run_id)
    paths = run_paths.assignment(crawl.crawl_id)
    work = digest(SCHEMA_VERSION, CLUSTERS_VERSION, run.document["work"], crawl.digest, examples)
    if storage.exists(paths.marker):
        document = read_json(storage, paths.marker)
        if document.get("work") == work and set(_files(paths)) <= set(storage.list(paths.folder)):
            say("assign", f"{storage.uri(paths.folder)} is done already")
            return document
    schema = clusters_schema(run.config.clustering)
    prototypes = read_table(storage, run_paths.prototypes)
    own_losses = read_table(storage, run_paths.clusters, [loss_column(schema)])[loss_column(schema)].to_numpy()
    started = time.monotonic()
    clusters = assign_crawls(storage, run_paths.checkpoint(run.selected.trial.name), [crawl], schema)
    seconds = time.monotonic() - started
    changes = changes_of(clusters, prototypes, own_losses)
    subtitle = f"{counted(clusters.num_rows, 'image')} of crawl {crawl.crawl_id}: share in the run to share here"
    picture = draw_mosaic(
        run.config.collection, subtitle, change_tiles(changes, prototypes), run.config.reporting.tile_px
    )
    document = {
        "schema_version": SCHEMA_VERSION,
        "work": work,
        **_describe(storage, run, crawl, changes, paths),
        "examples": examples,
        "seconds": round(seconds, 3),
        "images_per_second": round(clusters.num_rows / seconds, 3),
    }

    # An earlier assignment ends here, its marker first.
    storage.delete(paths.marker)
    rows = clusters if examples else without_sources(clusters)
    write_clusters_parquet(storage, paths.clusters, rows)
    write_clusters_csv(storage, paths.spreadsheet, rows)
    storage.write_bytes(paths.changes, _csv(changes))
    storage.write_bytes(paths.picture, png(picture))
    write_json(storage, paths.marker, document)
    return document


def assignments_of(storage: Storage, run: RunPaths) -> list[AssignmentPaths]:
    """All that was assigned to the prototypes of `run`, complete or not."""
    crawls = {key.removeprefix(f"{run.assignments}/").split("/")[0] for key in storage.list(run.assignments)}
    return [run.assignment(crawl_id) for crawl_id in sorted(crawls)]


def delete_assignment(storage: Storage, paths: AssignmentPaths) -> None:
    """Delete an assignment, its marker first."""
    for key in (paths.marker, *storage.list(paths.folder)):
        storage.delete(key)


def _files(paths: AssignmentPaths) -> list[str]:
    """Keys of everything that an assignment consists of, apart from ``assignment.json``."""
    return [paths.clusters, paths.spreadsheet, paths.changes, paths.picture]


def _csv(changes: Changes) -> bytes:
    buffer = io.BytesIO()
    csv.write_csv(changes.table, buffer, csv.WriteOptions(quoting_style="none"))
    return buffer.getvalue()


def _describe(storage: Storage, run: PastRun, crawl: Crawl, changes: Changes, paths: AssignmentPaths) -> dict[str, Any]:
    """What ``assignment.json`` says of the images, and where everything is."""
    run_paths = RunPaths(paths.collection, paths.run_id)
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
        "loss": {"mean": changes.mean_loss, "run_mean": changes.run_mean_loss, "fence": changes.fence},
        "changes": largest_changes(changes),
        "paths": {
            "assignment": storage.uri(paths.folder),
            "clusters": storage.uri(paths.clusters),
            "spreadsheet": storage.uri(paths.spreadsheet),
            "changes": storage.uri(paths.changes),
            "picture": storage.uri(paths.picture),
            "checkpoint": storage.uri(run_paths.checkpoint(run.selected.trial.name)),
        },
        "versions": versions(),
    }
