"""Labelled array files in an S3 bucket: their records are read from a local copy and get addresses in the bucket."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pipeline.errors import SourceError
from pipeline.ingest.sources.arrays.labelled_arrays import IDX_IMAGES, idx_records, npz_records
from pipeline.ingest.sources.s3 import download
from pipeline.ingest.sources.tree import File, Folder, Tree, open_tree
from pipeline.records import CrawlRecord

_IDX_LABELS = re.compile(r"labels(.*)idx1")


def holds_idx(folder: Folder) -> bool:
    """Return whether `folder` contains an IDX file of images and its labels."""
    return any(IDX_IMAGES.search(file.name) and len(_with_labels(file, folder)) > 1 for file in folder.files)


def array_records(tree: Tree, kind: Literal["idx", "npz"]) -> Iterator[CrawlRecord]:
    """Yield the images of the array file `tree`, or of all IDX files below that prefix, with their labels.

    Raises the same errors as `idx_records` and `npz_records`, and StorageError where S3 or the disk refuses.
    """
    files = _files_to_copy(tree, kind)
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            download(file.uri, Path(folder) / file.name)
        uris = {file.name: file.uri for file in files}
        local_source = Path(folder) / files[0].name if tree.file() is not None else Path(folder)
        try:
            for record in idx_records(local_source) if kind == "idx" else npz_records(local_source):
                name = record.file_name.rpartition("#")[0]
                yield replace(record, source_uri=f"{uris[name]}#{record.array_index}")
        except SourceError as error:
            remote_folder = tree.root if tree.file() is None else tree.root.rpartition("/")[0]
            raise SourceError(str(error).replace(folder, remote_folder)) from error


def _files_to_copy(tree: Tree, kind: Literal["idx", "npz"]) -> list[File]:
    """Return the files that must be downloaded; if the source is a file, it is the first of them."""
    file = tree.file()
    if file is None:
        return [f for f in tree.list().files if IDX_IMAGES.search(f.name) or _IDX_LABELS.search(f.name)]
    if kind == "npz":
        return [file]
    return _with_labels(file, open_tree(tree.root.rpartition("/")[0]).list())


def _with_labels(images: File, folder: Folder) -> list[File]:
    """Return `images`, followed by the files in `folder` with the names that its labels would have."""
    name = IDX_IMAGES.sub(r"labels\1idx1", images.name).removesuffix(".gz")
    return [images, *(file for file in folder.files if file.name in {name, f"{name}.gz"} - {images.name})]
