"""The images of a run as an MLflow data set: their digest, location and number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipeline.config import digest
from pipeline.paths import CrawlPaths, crawls_folder
from pipeline.records import Crawl
from pipeline.reporting.tracking.model import images_schema
from pipeline.storage import Storage

CONTEXT = "clustering"
"""Context of the data set in MLflow: the images were used for clustering."""
_MAX_SOURCE = 60_000  # characters; slightly below the limit of an MLflow server


def data_digest(crawls: Sequence[Crawl]) -> str:
    """Return a digest of twelve hexadecimal digits, equal for two lists of crawls if they contain the same images."""
    return digest(sorted(crawl.digest for crawl in crawls if crawl.accepted))


def dataset_input(storage: Storage, collection: str, crawls: Sequence[Crawl]) -> Any:
    """Return the images of `crawls` as MLflow's ``DatasetInput``.

    Its source consists of the URI of the folder of all crawls, since MLflow expects one URI, and the URIs of the shards
    of each crawl. The latter are left out if they are too long for an MLflow server.
    """
    from mlflow.data.schema import TensorDatasetSchema
    from mlflow.entities import Dataset, DatasetInput, InputTag

    folder = storage.uri(crawls_folder(collection))
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
