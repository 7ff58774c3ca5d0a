"""Copies of array files of S3: an array is read as a whole, so a process that needs one takes a copy of it first."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

from pipeline.ingest.sources.s3 import download


def local_copy(uri: str, sha256: str) -> Path:
    """A local copy of the array file at `uri`; a process takes one per state of the file, and keeps the last.

    Raises StorageError where S3 or the disk refuses.
    """
    return Path(_folder_with(uri, sha256).name) / "array" / uri.rpartition("/")[2]


@lru_cache(maxsize=1)
def _folder_with(uri: str, sha256: str) -> tempfile.TemporaryDirectory[str]:
    """A folder that is removed once another array took its place, or the process ends."""
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    path = Path(folder.name) / "array" / uri.rpartition("/")[2]
    path.parent.mkdir()
    download(uri, path)
    return folder
