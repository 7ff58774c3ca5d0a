"""Reading and writing shards: WebDataset tars of ``<image_id>.jpg`` (or ``.png``) and ``<image_id>.json``.

Tars are reproducible byte by byte, because they contain no times and no owners. Reading a shard is safe: it never
unpickles data and opens no addresses, because the bytes come from Storage and the members are decoded here.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.config import ImageFormat
from pipeline.errors import StorageError
from pipeline.paths import CrawlPaths, crawls_folder
from pipeline.records import Crawl
from pipeline.storage import Storage, read_json, scratch_folder

EXTENSIONS: dict[ImageFormat, str] = {"jpeg": "jpg", "png": "png"}
"""File name extension of the image member, by image format."""

END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)
"""Two zero blocks at the end of each tar; without them, the tar was cut off."""


@dataclass(frozen=True)
class Sample:
    """An image of a shard with its metadata."""

    image_id: str
    data: bytes
    """Content of the image file."""
    metadata: dict[str, Any]
    """Content of the JSON member."""
    shard: str = field(default="", compare=False)
    """Address of the shard from which the sample was read; used in error messages."""
    image_format: ImageFormat = "jpeg"

    def pixels(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the image: uint8, height x width x 3 (RGB) or 1 (grey). Raises StorageError if it is broken."""
        try:
            with Image.open(io.BytesIO(self.data), formats=[self.image_format]) as image:
                return np.atleast_3d(np.asarray(image if image.mode == "L" else image.convert("RGB")))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            name = f"{self.image_id}.{EXTENSIONS[self.image_format]}"
            raise StorageError(f"{self.shard}: {name} is broken ({error}); {_remedy(self.shard)}") from error


def write_shard(path: Path, samples: Iterable[Sample]) -> None:
    """Write `samples` to the local tar `path`, in order; the same samples give the same bytes.

    The two members of a sample follow each other and have the same name before the dot, as WebDataset requires.
    WebDataset's own writer is not used, because it would import torch into every ingest process.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            document = json.dumps(sample.metadata, ensure_ascii=False, sort_keys=True)
            for extension, data in sorted(
                [(EXTENSIONS[sample.image_format], sample.data), ("json", document.encode())]
            ):
                member = tarfile.TarInfo(f"{sample.image_id}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def publish_shard(storage: Storage, key: str, samples: Iterable[Sample]) -> None:
    """Write `samples` to a tar and publish it as `key` of `storage`."""
    with scratch_folder() as folder:
        tar = folder / "shard.tar"
        write_shard(tar, samples)
        storage.publish(tar, key)


def read_shard(storage: Storage, key: str) -> Iterator[Sample]:
    """Yield the samples of the tar `key`, in the order in which they were written.

    Raises StorageError if the tar is missing, cut off or not a shard.
    """
    # Imported here because it imports torch, which takes seconds and a few hundred MB.
    from webdataset.tariterators import group_by_keys, tar_file_expander

    shard = storage.uri(key)
    if not storage.exists(key):
        raise StorageError(f"{shard}: missing, although its crawl is complete; {_remedy(shard)}")
    data = storage.read_bytes(key)
    if not data.endswith(END_OF_TAR):
        raise StorageError(f"{shard}: the tar is incomplete; {_remedy(shard)}")
    try:
        for member in group_by_keys(tar_file_expander([{"url": key, "stream": io.BytesIO(data)}])):
            image_format: ImageFormat = "png" if EXTENSIONS["png"] in member else "jpeg"
            data = member[EXTENSIONS[image_format]]
            yield Sample(member["__key__"], data, json.loads(member["json"]), shard, image_format)
    except KeyError as error:
        raise StorageError(f"{shard}: a sample has no member {error}; {_remedy(shard)}") from error
    except (tarfile.TarError, ValueError) as error:
        raise StorageError(f"{shard}: not a shard ({error}); {_remedy(shard)}") from error


def count_samples(storage: Storage, key: str) -> int:
    """Return the number of samples in the tar `key`. Raises StorageError if it is missing or broken."""
    try:
        with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(key))) as tar:
            return sum(name.endswith(".json") for name in tar.getnames())
    except tarfile.TarError as error:
        reason = " ".join(str(error).split())
        raise StorageError(f"{storage.uri(key)}: not a shard ({reason}); {_remedy(storage.uri(key))}") from error


def _remedy(shard: str) -> str:
    """Instruction for the user of the broken tar at the address `shard`."""
    return f"delete the crawl folder {shard.rpartition('/shards/')[0] or shard} and run the same command again"


def complete_crawls(storage: Storage, collection: str) -> list[Crawl]:
    """Return all complete crawls of `collection`, ordered by crawl id. Raises StorageError for a broken crawl.json."""
    markers = sorted(key for key in storage.list(crawls_folder(collection)) if key.endswith("/crawl.json"))
    return [read_crawl(storage, key) for key in markers]


def read_crawl(storage: Storage, key: str) -> Crawl:
    """Return the crawl that the marker `key` describes. Raises StorageError if the marker is broken."""
    document = read_json(storage, key)
    try:
        return Crawl(**{name: document[name] for name in Crawl.__dataclass_fields__})
    except KeyError as error:
        raise StorageError(
            f"{storage.uri(key)}: the field {error} is missing; delete the file and run the ingest stage again"
        ) from error


def shard_keys(crawls: Iterable[Crawl]) -> list[str]:
    """Return the keys of all shards of `crawls`, in order."""
    return [CrawlPaths(crawl.collection, crawl.crawl_id).shard(i) for crawl in crawls for i in range(crawl.n_shards)]
