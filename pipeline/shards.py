"""Both sides of the shard format: WebDataset tars of ``<image_id>.jpg`` (or ``.png``) and ``<image_id>.json``.

Tars are byte-reproducible (no times, no owners). Reading never unpickles and never opens an address by itself:
the bytes come from Storage, and the member types are decoded here.
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
from pipeline.paths import CrawlPaths, crawls_of
from pipeline.records import Crawl
from pipeline.storage import Storage, read_json, scratch_folder

EXTENSIONS: dict[ImageFormat, str] = {"jpeg": "jpg", "png": "png"}
"""Of the image member, by the format of the image."""

END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)
"""Without it, a tar that was cut off between two members would pass for a shorter one."""


@dataclass(frozen=True)
class Sample:
    """One member pair of a shard."""

    image_id: str
    data: bytes
    """The image file."""
    metadata: dict[str, Any]
    shard: str = field(default="", compare=False)
    """Where it was read from."""
    image_format: ImageFormat = "jpeg"

    def pixels(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The image: uint8, height x width x 3 (RGB) or x 1 (grey). Raises StorageError where it is broken."""
        try:
            with Image.open(io.BytesIO(self.data), formats=[self.image_format]) as image:
                return np.atleast_3d(np.asarray(image if image.mode == "L" else image.convert("RGB")))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            name = f"{self.image_id}.{EXTENSIONS[self.image_format]}"
            raise StorageError(f"{self.shard}: {name} is broken ({error}); {_remedy(self.shard)}") from error


def write_shard(path: Path, samples: Iterable[Sample]) -> None:
    """Write `samples` to the local tar `path`, in order; the same samples give the same bytes.

    The members of a sample are neighbours and share all of their name before the dot, as WebDataset asks. Its own
    writer would bring torch into every process of ingest.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            document = json.dumps(sample.metadata, ensure_ascii=False, sort_keys=True)
            for extension, data in sorted(
                [(EXTENSIONS[sample.image_format], sample.data), ("json", document.encode())]
            ):
                _add(tar, f"{sample.image_id}.{extension}", data)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def publish_shard(storage: Storage, key: str, samples: Iterable[Sample]) -> None:
    """Write `samples` as the tar `key` of `storage`, whole."""
    with scratch_folder() as folder:
        tar = folder / "shard.tar"
        write_shard(tar, samples)
        storage.publish(tar, key)


def read_shard(storage: Storage, key: str) -> Iterator[Sample]:
    """The samples of the tar `key` in the order in which they were written.

    Raises StorageError where it is missing, cut off, or holds something else.
    """
    # It imports torch, which takes seconds and a few hundred MB.
    from webdataset.tariterators import group_by_keys, tar_file_expander

    shard = storage.uri(key)
    if not storage.exists(key):
        raise StorageError(f"{shard}: missing, although its crawl is complete; {_remedy(shard)}")
    data = storage.read_bytes(key)
    if not data.endswith(END_OF_TAR):
        raise StorageError(f"{shard}: not a whole tar; {_remedy(shard)}")
    try:
        for member in group_by_keys(tar_file_expander([{"url": key, "stream": io.BytesIO(data)}])):
            image_format: ImageFormat = "png" if EXTENSIONS["png"] in member else "jpeg"
            data = member[EXTENSIONS[image_format]]
            yield Sample(member["__key__"], data, json.loads(member["json"]), shard, image_format)
    except KeyError as error:
        raise StorageError(f"{shard}: a member has no {error}; {_remedy(shard)}") from error
    except (tarfile.TarError, ValueError) as error:
        raise StorageError(f"{shard}: not a shard ({error}); {_remedy(shard)}") from error


def count_samples(storage: Storage, key: str) -> int:
    """How many samples the tar `key` holds. Raises StorageError where it is missing or broken."""
    try:
        with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(key))) as tar:
            return sum(name.endswith(".json") for name in tar.getnames())
    except tarfile.TarError as error:
        why = " ".join(str(error).split())
        raise StorageError(f"{storage.uri(key)}: not a shard ({why}); {_remedy(storage.uri(key))}") from error


def _remedy(shard: str) -> str:
    """What to do about the broken tar at the address `shard`."""
    return f"delete the crawl folder {shard.rpartition('/shards/')[0] or shard} and run the same command again"


def complete_crawls(storage: Storage, collection: str) -> list[Crawl]:
    """All complete crawls of `collection`, ordered by crawl id. Raises StorageError where a crawl.json is broken."""
    markers = sorted(key for key in storage.list(crawls_of(collection)) if key.endswith("/crawl.json"))
    return [read_crawl(storage, key) for key in markers]


def read_crawl(storage: Storage, key: str) -> Crawl:
    """The crawl that the marker `key` describes. Raises StorageError where it is broken."""
    document = read_json(storage, key)
    try:
        return Crawl(**{name: document[name] for name in Crawl.__dataclass_fields__})
    except KeyError as error:
        raise StorageError(
            f"{storage.uri(key)}: has no {error}; delete the file and run the ingest stage again"
        ) from error


def shard_keys(crawls: Iterable[Crawl]) -> list[str]:
    """Keys of the shards of `crawls`, in order."""
    return [CrawlPaths(crawl.collection, crawl.crawl_id).shard(i) for crawl in crawls for i in range(crawl.n_shards)]
