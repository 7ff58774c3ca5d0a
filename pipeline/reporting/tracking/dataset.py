"""The images of a run as an MLflow data set: which they are, where they lie and how many."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipeline.config import digest
from pipeline.paths import CrawlPaths, crawls_of
from pipeline.records import Crawl
from pipeline.reporting.tracking.model import images_schema
from pipeline.storage import Storage

CONTEXT = "clustering"
"""What the images were used for."""
_MAX_SOURCE = 60_000  # characters that an MLflow server accepts, with some to spare


def data_digest(crawls: Sequence[Crawl]) -> str:
    """Twelve hexadecimal digits that two lists of crawls share if they hold the same images."""
    return digest(sorted(crawl.digest for crawl in crawls if crawl.accepted))


def dataset_input(storage: Storage, collection: str, crawls: Sequence[Crawl]) -> Any:
    """The images of `crawls` as MLflow's ``DatasetInput``.

    Its source is the folder of the collection's crawls, as MLflow's own sources have one address, and the address of
    each crawl's shards in it; only the former where those are too many for an MLflow server.
    """
    from mlflow.data.schema import TensorDatasetSchema
    from mlflow.entities import Dataset, DatasetInput, InputTag

    folder = storage.uri(crawls_of(collection))
    shards = [storage.uri(CrawlPaths(collection, crawl.crawl_id).shards) for crawl in crawls]
    source = {"uri": folder, "shards": shards}
    if len(json.dumps(source)) > _MAX_SOURCE:
        del source["shards"]
    profile = {
        "images": sum(crawl.accepted for crawl in crawls),
        "records": sum(crawl.records for crawl in crawls),
        "shards": sum(crawl.n_shards for crawl in crawls),
        "crawls": len(crawls),
    }
    dataset = Dataset(
        name=collection,
        digest=data_digest(crawls),
        source_type="s3" if folder.startswith("s3://") else "local",
        source=json.dumps(source),
        schema=json.dumps(TensorDatasetSchema(images_schema(crawls[0])).to_dict()),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", CONTEXT)])
