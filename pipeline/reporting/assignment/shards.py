"""Every ingested image gets its prototype: one Ray task per shard, whose rows come back without pixels."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline.clustering.checkpoint import load_method
from pipeline.clustering.model.method import ClusteringMethod
from pipeline.console import Progress, rated, say
from pipeline.errors import StorageError
from pipeline.paths import CrawlPaths
from pipeline.records import Crawl
from pipeline.reporting.assignment.batch import BATCH_SIZE, assign_pictures, assignment_schema
from pipeline.reporting.tables.manifest import check_counts, clusters_table, transform_columns
from pipeline.session import run_bounded
from pipeline.shards import Sample, read_shard
from pipeline.storage import Storage, open_storage, read_table


def assign_crawls(storage: Storage, checkpoint: str, crawls: list[Crawl], schema: pa.Schema) -> pa.Table:
    """Assign every image of `crawls` with the model stored as `checkpoint`.

    Args:
        storage: workspace with the shards and the model; it travels to the tasks.
        checkpoint: key of the trained model.
        crawls: complete crawls of one image size.
        schema: as `manifest.clusters_schema` made it.

    Returns:
        One row per image, as `manifest.clusters_table` orders them.

    Raises:
        PipelineError: fewer or more images were assigned than were ingested.
    """
    import ray

    task = ray.remote(num_cpus=1)(_assign)
    started = time.monotonic()
    shards = [(crawl, index) for crawl in crawls for index in range(crawl.n_shards)]
    parts = []
    with Progress("assign", sum(crawl.accepted for crawl in crawls), "img") as progress:
        for _, part in run_bounded(lambda shard: task.remote(storage, checkpoint, *shard, schema), shards):
            parts.append(part)
            progress.advance(part.num_rows)
    clusters = clusters_table(parts, schema)
    check_counts(storage, clusters, crawls)
    say("assign", rated(clusters.num_rows, "image", time.monotonic() - started))
    return clusters


def _assign(storage: Storage, checkpoint: str, crawl: Crawl, index: int, schema: pa.Schema) -> pa.Table:
    return assign_shard(storage, trained_method(storage.root, checkpoint), crawl, index, schema)


@lru_cache(maxsize=1)
def trained_method(root: str, checkpoint: str) -> ClusteringMethod:
    """The model stored as `checkpoint` in the workspace `root`, on one CPU thread; read once per process."""
    torch.set_num_threads(1)
    return load_method(open_storage(root), checkpoint)


def assign_shard(storage: Storage, method: ClusteringMethod, crawl: Crawl, index: int, schema: pa.Schema) -> pa.Table:
    """The rows of shard `index` of `crawl`: what ingest knows of each image, and its assignment.

    Raises StorageError where the tar holds an image that the shard's rows do not name.
    """
    paths = CrawlPaths(crawl.collection, crawl.crawl_id)
    rows = read_table(storage, paths.rows(index))
    rows = rows.filter(pc.equal(rows["status"], "accepted"))
    assigned = assign_samples(method, read_shard(storage, paths.shard(index)), schema)
    position = pc.index_in(assigned["image_id"], rows["image_id"])
    if position.null_count:
        raise StorageError(
            f"{storage.uri(paths.shard(index))}: not the images of {paths.rows(index)}; "
            f"delete {storage.uri(paths.folder)} and run the same command again"
        )
    columns = {name: rows[name].take(position) for name in schema.names if name in rows.column_names}
    columns["crawl_id"] = pa.repeat(pa.scalar(crawl.crawl_id), len(position))
    columns["shard"] = pa.repeat(pa.scalar(index, pa.int32()), len(position))
    columns |= {name: assigned[name] for name in assigned.column_names}
    return pa.table([columns[name] for name in schema.names], schema=schema)


def assign_samples(method: ClusteringMethod, samples: Iterable[Sample], schema: pa.Schema) -> pa.Table:
    """The columns of `schema` that come from the model, and ``image_id``; one row per sample, in order."""
    names = ["image_id", *assignment_schema(schema).names, *transform_columns(schema).values()]
    wanted = pa.schema([schema.field(name) for name in names])
    batches = [_assign_batch(method, batch, schema) for batch in _batches(samples)]
    return pa.concat_tables([wanted.empty_table(), *(batch.select(names).cast(wanted) for batch in batches)])


def _assign_batch(method: ClusteringMethod, samples: list[Sample], schema: pa.Schema) -> pa.Table:
    image_ids = pa.array([sample.image_id for sample in samples], pa.string())
    assigned = assign_pictures(method, [sample.pixels() for sample in samples], schema)
    return assigned.append_column(schema.field("image_id"), image_ids)


def _batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    remaining = iter(samples)
    while batch := list(islice(remaining, BATCH_SIZE)):
        yield batch
