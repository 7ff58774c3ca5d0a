"""Assign all ingested images to prototypes, with one Ray task per shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline.clustering.checkpoint import load_method
from pipeline.clustering.model.method import ClusteringMethod
from pipeline.console import Progress
from pipeline.errors import StorageError
from pipeline.paths import CrawlPaths
from pipeline.records import Crawl
from pipeline.reporting.assignment.batch import BATCH_SIZE, assign_pictures, assignment_schema
from pipeline.reporting.tables.manifest import check_counts, clusters_table, transform_columns
from pipeline.session import ray_task, run_bounded
from pipeline.shards import Sample, read_shard
from pipeline.storage import Storage, open_storage, read_table


def assign_crawls(storage: Storage, checkpoint: str, crawls: list[Crawl], schema: pa.Schema) -> pa.Table:
    """Assign every image of `crawls` with the model stored as `checkpoint`.

    Args:
        storage: workspace with the shards and the model; it is sent to the tasks.
        checkpoint: key of the trained model.
        crawls: complete crawls of the same image size.
        schema: see `manifest.clusters_schema`.

    Returns:
        One row per image, in the order of `manifest.clusters_table`.

    Raises:
        PipelineError: the number of assigned images differs from the number of ingested images.
    """
    task = ray_task(_assign)
    shards = [(crawl, index) for crawl in crawls for index in range(crawl.n_shards)]
    parts = []
    with Progress("assign", sum(crawl.accepted for crawl in crawls), "image") as progress:
        for _, part in run_bounded(lambda shard: task.remote(storage, checkpoint, *shard, schema), shards):
            parts.append(part)
            progress.advance(part.num_rows)
    clusters = clusters_table(parts, schema)
    check_counts(storage, clusters, crawls)
    return clusters


def _assign(storage: Storage, checkpoint: str, crawl: Crawl, index: int, schema: pa.Schema) -> pa.Table:
    return assign_shard(storage, trained_method(storage.root, checkpoint), crawl, index, schema)


@lru_cache(maxsize=1)
def trained_method(root: str, checkpoint: str) -> ClusteringMethod:
    """Return the model `checkpoint` of the workspace `root`, cached per process, and limit torch to one thread."""
    torch.set_num_threads(1)
    return load_method(open_storage(root), checkpoint)


def assign_shard(storage: Storage, method: ClusteringMethod, crawl: Crawl, index: int, schema: pa.Schema) -> pa.Table:
    """Return one row per image of shard `index` of `crawl`: its record from ingest, and its assignment.

    Raises StorageError if the tar contains an image without a row in the shard's table.
    """
    paths = CrawlPaths(crawl.collection, crawl.crawl_id)
    rows = read_table(storage, paths.rows(index))
    rows = rows.filter(pc.equal(rows["status"], "accepted"))
    assigned = assign_samples(method, read_shard(storage, paths.shard(index)), schema)
    position = pc.index_in(assigned["image_id"], rows["image_id"])
    if position.null_count:
        raise StorageError(
            f"{storage.uri(paths.shard(index))}: its images differ from those in {paths.rows(index)}; "
            f"delete {storage.uri(paths.folder)} and run the same command again"
        )
    columns = {name: rows[name].take(position) for name in schema.names if name in rows.column_names}
    columns["crawl_id"] = pa.repeat(pa.scalar(crawl.crawl_id), len(position))
    columns["shard"] = pa.repeat(pa.scalar(index, pa.int32()), len(position))
    columns |= {name: assigned[name] for name in assigned.column_names}
    return pa.table([columns[name] for name in schema.names], schema=schema)


def assign_samples(method: ClusteringMethod, samples: Iterable[Sample], schema: pa.Schema) -> pa.Table:
    """Return ``image_id`` and the columns of `schema` that the model computes; one row per sample, in order."""
    names = ["image_id", *assignment_schema(schema).names, *transform_columns(schema).values()]
    columns = pa.schema([schema.field(name) for name in names])
    batches = [_assign_batch(method, batch, schema) for batch in _batches(samples)]
    return pa.concat_tables([columns.empty_table(), *(batch.select(names).cast(columns) for batch in batches)])


def _assign_batch(method: ClusteringMethod, samples: list[Sample], schema: pa.Schema) -> pa.Table:
    image_ids = pa.array([sample.image_id for sample in samples], pa.string())
    assigned = assign_pictures(method, [sample.pixels() for sample in samples], schema)
    return assigned.append_column(schema.field("image_id"), image_ids)


def _batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    remaining = iter(samples)
    while batch := list(islice(remaining, BATCH_SIZE)):
        yield batch
