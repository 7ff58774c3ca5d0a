"""Labelled array files to records: the standard benchmarks, one record per image.

Repeats of a benchmark are kept, unlike those of a crawl: its results are over all its images. So an image is named
after its file and its place in it, not after its pixels: the same file in two crawls is the same images, and two equal
images of one file are two.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.ingest.fetch import file_uri, local_path
from pipeline.ingest.images import Pixels
from pipeline.ingest.sources.array_files import inspect_images, read_image, read_labels
from pipeline.ingest.sources.remote_arrays import local_copy
from pipeline.ingest.sources.s3 import S3_SCHEME
from pipeline.ingest.text import storable
from pipeline.records import CrawlRecord

IDX_IMAGES = re.compile(r"images(.*)idx[34]")
"""In the names of IDX files of images; those of their labels have ``labels`` and ``idx1`` there."""


def looks_like_idx(source: Path) -> bool:
    """Whether `source` is an IDX file of images by its name, or a folder that holds one with its labels."""
    if source.is_file():
        return IDX_IMAGES.search(source.name) is not None
    try:
        return any(_labels_of(images).exists() for images in _images_files(source))
    except OSError:  # no folder, or one that cannot be listed: for others to say
        return False


def idx_records(source: Path) -> Iterator[CrawlRecord]:
    """The images of the IDX file `source`, or of all those in the folder `source`, by name, with their labels.

    Files may be gzipped; where a file is there twice, it is read as it is.

    Raises SourceError for a file without labels, a folder without files, and what `inspect_images` does not read.
    """
    if source.is_file():
        files = [source]
    else:
        try:
            files = _images_files(source)
        except OSError as error:
            raise SourceError(f"source {source}: {error.strerror}; expected IDX files or their folder") from error
    if not files:
        raise SourceError(f"source {source}: no IDX file of images, such as train-images-idx3-ubyte.gz")
    for images in files:
        labels = _labels_of(images)
        if labels == images:
            raise SourceError(f"source {images}: expected a name such as train-images-idx3-ubyte.gz")
        if not labels.exists():
            raise SourceError(f"source {images}: its labels are missing; expected {labels.name} beside it")
        yield from _records(images, "IDX", read_labels(labels), labels)


def npz_records(source: Path) -> Iterator[CrawlRecord]:
    """The images of the ``.npz`` file `source`, with the labels that it may have.

    Raises SourceError where it is not such a file, and what `inspect_images` raises.
    """
    if source.suffix.lower() != ".npz" or not source.is_file():
        raise SourceError(f"source {source}: expected a file .npz with the arrays images and labels")
    yield from _records(source, "NPZ", read_labels(source), source)


def read_record(source_uri: str, index: int, array_sha256: str) -> Pixels:
    """The image of a record that this module made. Raises what `read_image` does."""
    address = source_uri.removesuffix(f"#{index}")
    path = local_copy(address, array_sha256) if address.startswith(S3_SCHEME) else Path(local_path(address))
    return read_image(path, index, array_sha256)


def record_digest(array_sha256: str, index: int) -> str:
    """Stands for the SHA-256 of the content of image `index` of an array file; different for all of its images."""
    return hashlib.sha256(f"{array_sha256}#{index}".encode()).hexdigest()


def _records(
    images: Path, file_format: str, labels: list[str | None] | None, labels_file: Path
) -> Iterator[CrawlRecord]:
    file = inspect_images(images)
    if labels is not None and len(labels) != file.images:
        raise SourceError(
            f"source {images}: {file.images} images, but {len(labels)} labels in {labels_file.name}; "
            "expected one label per image"
        )
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
    """IDX files of images in `folder`, by name; a gzipped one only where it is not there unpacked too."""
    found = {path.name: path for path in folder.iterdir() if IDX_IMAGES.search(path.name) and path.is_file()}
    return [found[name] for name in sorted(found) if name.removesuffix(".gz") == name or name[:-3] not in found]


def _labels_of(images: Path) -> Path:
    """The file that should hold the labels of the file `images`, unpacked or gzipped, whichever is there."""
    name = IDX_IMAGES.sub(r"labels\1idx1", images.name)
    other = name.removesuffix(".gz") if name.endswith(".gz") else f"{name}.gz"
    path = images.with_name(name)
    return images.with_name(other) if images.with_name(other).exists() and not path.exists() else path
