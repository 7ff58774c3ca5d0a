"""Both sides of the shard format: WebDataset tars of ``<image_id>.jpg`` and ``<image_id>.json``.

Tars are byte-reproducible (no times, no owners). Reading never unpickles and never opens an address by itself:
the bytes come from Storage, and the two member types are decoded here.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.errors import StorageError
from pipeline.layout import CrawlPaths, crawls_of
from pipeline.records import Crawl
from pipeline.storage import Storage, read_json

END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)
"""Without it, a tar that was cut off between two members would pass for a shorter one."""


@dataclass(frozen=True)
class Sample:
    """One member pair of a shard."""

    image_id: str
    jpeg: bytes
    metadata: dict[str, Any]

    def pixels(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The image: uint8, height x width x 3, RGB."""
        return np.asarray(Image.open(io.BytesIO(self.jpeg), formats=["JPEG"]).convert("RGB"))


def write_shard(path: Path, samples: Iterable[Sample]) -> None:
    """Write `samples` to the local tar `path`, in order; the same samples give the same bytes."""
    with wds.TarWriter(str(path), mtime=0, user="", group="", mode=0o644) as writer:
        for sample in samples:
            document = json.dumps(sample.metadata, ensure_ascii=False, sort_keys=True)
            writer.write({"__key__": sample.image_id, "jpg": sample.jpeg, "json": document.encode()})


def read_shard(storage: Storage, key: str) -> Iterator[Sample]:
    """The samples of the tar `key` in the order in which they were written.

    Raises StorageError where it is missing, cut off, or holds something else.
    """
    data = storage.read_bytes(key)
    if not data.endswith(END_OF_TAR):
        raise StorageError(f"{storage.uri(key)}: not a whole tar; delete its crawl and ingest it again")
    try:
        for member in group_by_keys(tar_file_expander([{"url": key, "stream": io.BytesIO(data)}])):
            yield Sample(member["__key__"], member["jpg"], json.loads(member["json"]))
    except KeyError as error:
        raise StorageError(f"{storage.uri(key)}: a member has no {error}") from error
    except (tarfile.TarError, ValueError) as error:
        raise StorageError(f"{storage.uri(key)}: not a shard ({error})") from error


def complete_crawls(storage: Storage, collection: str) -> list[Crawl]:
    """All complete crawls of `collection`, ordered by crawl id."""
    markers = (key for key in storage.list(crawls_of(collection)) if key.endswith("/crawl.json"))
    fields = Crawl.__dataclass_fields__
    documents = (read_json(storage, key) for key in sorted(markers))
    return [Crawl(**{name: document[name] for name in fields}) for document in documents]


def shard_keys(crawls: Iterable[Crawl]) -> list[str]:
    """Keys of the shards of `crawls`, in order."""
    return [CrawlPaths(crawl.collection, crawl.crawl_id).shard(i) for crawl in crawls for i in range(crawl.n_shards)]
