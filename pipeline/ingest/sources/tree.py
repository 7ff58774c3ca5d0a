"""List the files of a source one folder at a time, in a local folder or below a prefix of an S3 bucket.

Hidden files and ``*.part`` files are ignored. Local links to files are followed within the source. A link to a folder
of the source is not followed, because the folder is listed itself; one to another folder is a file with a problem.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import SourceError
from pipeline.ingest.rejection import RejectReason
from pipeline.ingest.sources.archives.members import parse_member
from pipeline.ingest.sources.content import file_uri, raise_machine_fault
from pipeline.ingest.sources.metadata import storable
from pipeline.ingest.sources.s3 import S3_SCHEME, list_folder, object_size, split_address


@dataclass(frozen=True, slots=True)
class File:
    """One file of a source."""

    path: str
    """Path within the source, with forward slashes, as the file system returns it."""
    uri: str
    """Address for `read_content`."""
    size: int | None
    """Size in bytes; None if it is unknown."""
    problem: RejectReason | None = None
    """Reason why the file cannot be read, if it is known before the file is opened."""
    detail: str | None = None
    """Explanation of the problem, as a sentence."""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def printable_uri(self) -> str:
        """Address as text that can be printed and stored."""
        return storable(self.uri)


@dataclass(frozen=True, slots=True)
class Folder:
    """Direct contents of one folder of a source."""

    path: str
    """Path within the source: empty for the source itself, otherwise with a trailing slash."""
    uri: str
    """Address with a trailing slash."""
    files: list[File]
    """Files, sorted by name."""
    folders: list[str]
    """Paths of the subfolders, sorted by name."""
    problem: RejectReason | None = None
    """Reason why the folder cannot be listed."""


class Tree(Protocol):
    """The files of one source."""

    root: str
    """Absolute address of the source as text."""

    def file(self) -> File | None:
        """Return the source itself if it is a file, otherwise None."""

    def exists(self) -> bool:
        """Return whether the source exists, as a folder or as a file."""

    def list(self, path: str = "") -> Folder:
        """List the folder `path`.

        Raises SourceError where the source itself cannot be listed, StorageError for faults of the machine.
        """


def open_tree(source: str) -> Tree:
    """Return the tree of `source`, a path or ``s3://bucket/prefix``. Raises SourceError for any other address."""
    if source.startswith(S3_SCHEME):
        return S3Tree(source)
    if "://" in source:
        raise SourceError(
            f"source {storable(source)}: expected a folder, a file or s3://bucket/prefix; to download images from "
            "URLs, list them in a file, one per line"
        )
    return LocalTree(source)


class LocalTree:
    """A local folder, or a single file."""

    def __init__(self, source: str) -> None:
        self.path = Path(source).expanduser().absolute()
        self.root = storable(str(self.path))

    def file(self) -> File | None:
        try:
            if not self.path.is_file():
                return None
            return File(self.path.name, file_uri(str(self.path)), self.path.stat().st_size)
        except (OSError, ValueError):
            return None

    def exists(self) -> bool:
        return os.path.lexists(self.path)

    def list(self, path: str = "") -> Folder:
        folder = os.path.join(self.path, path)
        uri = file_uri(os.path.join(folder, ""))
        try:
            with os.scandir(folder) as scan:
                entries = sorted((e for e in scan if _is_wanted(e.name)), key=lambda e: e.name)
        except (OSError, ValueError) as error:
            if not path:
                raise SourceError(f"source {self.root}: {self._error_message(error)}") from error
            if isinstance(error, OSError):
                raise_machine_fault(storable(folder), error)
            return Folder(path, uri, [], [], "unreadable")
        files = [file for e in entries if (file := self._file(path + e.name, e)) is not None]
        folders = [f"{path}{e.name}/" for e in entries if e.is_dir(follow_symlinks=False)]
        return Folder(path, uri, files, folders)

    def _link_problem(self, path: str, uri: str, link: str, status: os.stat_result) -> File | None:
        """Return the link at `link` as a file with a problem if its target, which has `status`, is not read."""
        real, root = Path(os.path.realpath(link)), Path(os.path.realpath(self.path))
        if not stat.S_ISDIR(status.st_mode):
            return None if real.is_relative_to(root) else File(path, uri, None, "outside_source")
        if real.is_relative_to(root) and all(map(_is_wanted, real.relative_to(root).parts)):
            return None  # the folder is listed itself
        detail = "a link to a folder that is not part of the source; give this folder as a source of its own"
        return File(path, uri, None, "outside_source", detail)

    def _error_message(self, error: OSError | ValueError) -> str:
        if isinstance(error, NotADirectoryError):
            return "expected a folder, found a file"
        if isinstance(error, FileNotFoundError):
            return "no such file or folder"
        return (error.strerror if isinstance(error, OSError) else None) or str(error)

    def _file(self, path: str, entry: os.DirEntry[str]) -> File | None:
        """Return the file `entry` if it is a regular file, a link to one, or a link that leads nowhere; else None."""
        uri = file_uri(entry.path)
        try:
            status = entry.stat()
        except OSError as error:
            if entry.is_symlink() and not is_inside(entry.path, self.path):
                return File(path, uri, None, "outside_source")
            if isinstance(error, FileNotFoundError):
                return File(path, uri, None, "missing_file")
            raise_machine_fault(storable(entry.path), error)
            return File(path, uri, None, "unreadable")
        if entry.is_symlink() and (problem := self._link_problem(path, uri, entry.path, status)) is not None:
            return problem
        if not stat.S_ISREG(status.st_mode):
            return None
        return File(path, uri, status.st_size)


class S3Tree:
    """The keys below a prefix, or a single object."""

    def __init__(self, source: str) -> None:
        self.bucket, key = split_address(source)
        self.key = key.rstrip("/")
        self.root = f"{S3_SCHEME}{self.bucket}" + (f"/{self.key}" if self.key else "")
        self._may_be_file = bool(key) and not key.endswith("/")

    def file(self) -> File | None:
        size = object_size(self.root) if self._may_be_file else None
        return None if size is None else File(self.key.rpartition("/")[2], self.root, size)

    def exists(self) -> bool:
        page = next(list_folder(self.root, self._prefix("")), {})
        return bool(page.get("KeyCount")) or self.file() is not None

    def list(self, path: str = "") -> Folder:
        prefix = self._prefix(path)
        files: list[File] = []
        folders: list[str] = []
        empty = True
        for page in list_folder(self.root, prefix):
            for item in page.get("Contents", ()):
                empty = False
                name = item["Key"][len(prefix) :]
                if name and _is_wanted(name):
                    files.append(self._file(path + name, item["Key"], item["Size"]))
            for item in page.get("CommonPrefixes", ()):
                empty = False
                name = item["Prefix"][len(prefix) :]
                if _is_wanted(name):
                    folders.append(path + name)
        if empty and not path:
            if self._may_be_file and object_size(self.root) is not None:
                raise SourceError(f"source {self.root}: expected a folder, found a file")
            raise SourceError(f"source {self.root}: no such file or folder; the bucket has no key below this prefix")
        files.sort(key=lambda file: file.path)
        return Folder(path, f"{S3_SCHEME}{self.bucket}/{prefix}", files, sorted(folders))

    def _prefix(self, path: str) -> str:
        return f"{self.key}/{path}" if self.key else path

    def _file(self, path: str, key: str, size: int) -> File:
        uri = f"{S3_SCHEME}{self.bucket}/{key}"
        # A hostile key may look like the address of a member of another object.
        return File(path, uri, size, "unreadable" if parse_member(uri) else None)


def is_inside(path: str, folder: Path) -> bool:
    """Return whether `path` is `folder` or below it, after all links have been resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _is_wanted(name: str) -> bool:
    return not name.startswith(".") and not name.lower().endswith(".part")
