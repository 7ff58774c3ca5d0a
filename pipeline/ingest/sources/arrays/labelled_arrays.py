"""Records of labelled array files, the standard benchmarks: one record per image.

Unlike duplicates in a crawl, duplicates in a benchmark are kept, because its results are defined over all of its
images. An image is therefore identified by its file and its index in it, not by its pixels: the same file in two crawls
gives the same images, and two equal images of one file are different images.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.ingest.sources.arrays.array_files import inspect_images, read_image, read_labels
from pipeline.ingest.sources.content import file_uri, local_path
from pipeline.ingest.sources.metadata import storable
from pipeline.ingest.sources.s3 import S3_SCHEME, download
from pipeline.records import CrawlRecord, Pixels

IDX_IMAGES = re.compile(r"images(.*)idx[34]")
"""Part of the names of IDX files of images. The names of their labels have ``labels`` and ``idx1`` instead."""


def looks_like_idx(source: Path) -> bool:
    """Return whether `source` has the name of an IDX file of images, or is a folder with such a file and its labels."""
    if source.is_file():
        return IDX_IMAGES.search(source.name) is not None
    try:
        return any(_labels_of(images).exists() for images in _images_files(source))
    except OSError:  # not a folder, or one that cannot be listed; the caller reports the error
        return False


def idx_records(source: Path) -> Iterator[CrawlRecord]:
    """Yield the images of the IDX file `source`, or of all IDX files in the folder `source` by name, with their labels.

    Files may be gzipped; if a file exists both gzipped and not, the latter is read.

    Raises SourceError for a file without labels, a folder without IDX files, and as `inspect_images` does.
    """
    if source.is_file():
        files = [source]
    else:
        try:
            files = _images_files(source)
        except OSError as error:
            raise SourceError(
                f"source {source}: {error.strerror}; expected an IDX file of images or a folder of such files"
            ) from error
    if not files:
        raise SourceError(f"source {source}: contains no IDX file of images, such as train-images-idx3-ubyte.gz")
    for images in files:
        labels = _labels_of(images)
        if labels == images:
            raise SourceError(f"source {images}: expected a file name such as train-images-idx3-ubyte.gz")
        if not labels.exists():
            raise SourceError(f"source {images}: its labels are missing; expected {labels.name} beside it")
        yield from _records(images, "IDX", labels)


def npz_records(source: Path) -> Iterator[CrawlRecord]:
    """Yield the images of the ``.npz`` file `source`, with their labels if it has any.

    Raises SourceError if it is not an ``.npz`` file, and the same errors as `inspect_images`.
    """
    if source.suffix.lower() != ".npz" or not source.is_file():
        raise SourceError(f"source {source}: expected an .npz file with the arrays images and labels")
    yield from _records(source, "NPZ", source)


def read_record(source_uri: str, index: int, array_sha256: str) -> Pixels:
    """Return the image of a record of this module. Raises the same errors as `read_image`."""
    address = source_uri.removesuffix(f"#{index}")
    path = _local_copy(address, array_sha256) if address.startswith(S3_SCHEME) else Path(local_path(address))
    return read_image(path, index, array_sha256)


def record_digest(array_sha256: str, index: int) -> str:
    """Return the SHA-256 that identifies image `index` of an array file in place of the digest of its content.

    It is different for all images of the file.
    """
    return hashlib.sha256(f"{array_sha256}#{index}".encode()).hexdigest()


def _records(images: Path, file_format: str, labels_file: Path) -> Iterator[CrawlRecord]:
    file = inspect_images(images)
    labels = read_labels(labels_file, file.images)
    uri, name = file_uri(str(images)), storable(images.name)
    for index in range(file.images):
        yield CrawlRecord(
            source_uri=f"{uri}#{index}",
            file_name=f"{name}#{index}",
            label=labels[index] if labels is not None else None,
            array_format=file_format,
            array_sha256=file.sha256,
            array_index=index,
            fingerprint=f"{name}#{index}:{file.size}",
        )


def _images_files(folder: Path) -> list[Path]:
    """Return the IDX files of images in `folder` by name; a gzipped one only if it does not exist uncompressed, too."""
    found = {path.name: path for path in folder.iterdir() if IDX_IMAGES.search(path.name) and path.is_file()}
    return [found[name] for name in sorted(found) if name.removesuffix(".gz") == name or name[:-3] not in found]


def _labels_of(images: Path) -> Path:
    """Return the path of the labels of the file `images`, gzipped or not, whichever exists."""
    name = IDX_IMAGES.sub(r"labels\1idx1", images.name)
    other = name.removesuffix(".gz") if name.endswith(".gz") else f"{name}.gz"
    path = images.with_name(name)
    return images.with_name(other) if images.with_name(other).exists() and not path.exists() else path


def _local_copy(uri: str, sha256: str) -> Path:
    """Return the path of this process's local copy of the array file at `uri` in S3.

    An array is read as a whole, so the process downloads the file once per state (`sha256`) and keeps the last copy.

    Raises StorageError where S3 or the disk refuses.
    """
    return Path(_folder_with_copy(uri, sha256).name) / "array" / uri.rpartition("/")[2]


@lru_cache(maxsize=1)
def _folder_with_copy(uri: str, sha256: str) -> tempfile.TemporaryDirectory[str]:
    """Return a folder with a copy of `uri`. It is removed when another array replaces it, or when the process ends."""
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    path = Path(folder.name) / "array" / uri.rpartition("/")[2]
    path.parent.mkdir()
    download(uri, path)
    return folder
