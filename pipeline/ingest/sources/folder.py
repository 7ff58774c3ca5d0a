"""Folders of images with subfolders, and the dumps of scrapers in them.

The layout of each folder is detected separately: posts of instaloader, files with a ``.json`` file beside them, tars,
and the metadata of an instagram-scraper dump. Every other regular file becomes a record, even if its name does not look
like that of an image: only decoding shows what a file contains. The names of one folder at a time are held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.errors import SourceError
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.archives import tar_records, zip_records
from pipeline.ingest.sources.archives.zips import BrokenZip
from pipeline.ingest.sources.file_records import file_record
from pipeline.ingest.sources.metadata import storable
from pipeline.ingest.sources.scrapers import instagram, instaloader, sidecars
from pipeline.ingest.sources.scrapers.sidecars import stem_of
from pipeline.ingest.sources.tree import File, Folder, Tree
from pipeline.records import CrawlRecord

Layout = Literal["instagram-scraper", "instaloader", "gallery-dl", "img2dataset", "tar", "zip"]

LAYOUT_DESCRIPTIONS: dict[Layout, str] = {
    "instagram-scraper": "a .json file with GraphImages beside the images (written with --media-metadata)",
    "instaloader": "files such as 2020-09-13_12-26-40_UTC.jpg",
    "gallery-dl": "a .json file beside each image (written with --write-metadata)",
    "img2dataset": "tars or folders with a .parquet table beside each",
    "tar": ".tar, .tar.gz or .tgz files",
    "zip": ".zip files",
}
"""Description of the files in a folder of each layout, for error messages."""


@dataclass
class Walk:
    """A walk through the folders of a tree that yields their records and counts them."""

    tree: Tree
    files: int = 0
    """Number of records so far."""
    labelled: int = 0
    """Number of records with a label so far."""
    layouts: set[Layout] = field(default_factory=set)
    """Layouts that were detected so far."""
    tables: dict[str, File] = field(default_factory=dict)
    """Tables of img2dataset that describe a folder which follows, by the path of the folder."""

    def records(self, start: Sequence[str] = ("",), class_folders: bool = False) -> Iterator[CrawlRecord]:
        """Yield the records of the folders `start`, paths in the tree, each followed by its subfolders by name.

        With `class_folders`, the name of the first folder below the source is the label of a record.
        """
        folders = list(reversed(start))
        while folders:
            folder = self.tree.list(folders.pop())
            label = storable(folder.path.partition("/")[0]) if class_folders and folder.path else None
            for record in self._folder_records(folder):
                self.files += 1
                self.labelled += label is not None
                yield record if label is None else replace(record, label=label)
            folders.extend(reversed(folder.folders))

    def _zip_records(self, file: File) -> Iterator[CrawlRecord]:
        try:
            members = zip_records.members_of(file)
        except (BrokenZip, Rejected) as error:
            yield zip_records.whole_file_record(file, error)
            return
        yield from zip_records.records(file, members)

    def _failed_downloads(self, folder: Folder) -> Iterator[CrawlRecord]:
        """Yield the records of the addresses of `folder` that img2dataset could not download, if it wrote it."""
        if (table := self.tables.pop(folder.path, None)) is not None:
            yield from tar_records.records_without_member(table, {stem_of(file.name) for file in folder.files})

    def _folder_records(self, folder: Folder) -> Iterator[CrawlRecord]:
        """Yield the records of one folder, without its subfolders."""
        if folder.problem is not None:
            path = folder.path.rstrip("/")
            yield file_record(File(path, folder.uri.rstrip("/"), None, folder.problem))
            return
        files = {file.name: file for file in folder.files}
        for path in folder.folders:
            stem = path.rstrip("/").rpartition("/")[2]
            if (table := files.pop(f"{stem}.parquet", None)) is not None:
                files.pop(f"{stem}_stats.json", None)
                self.layouts.add("img2dataset")
                self.tables[path] = table
        if post_files := instaloader.take_files(files):
            self.layouts.add("instaloader")
            yield from instaloader.records(folder, post_files)
        if described := sidecars.take_files(files):
            self.layouts.add("gallery-dl")
            yield from sidecars.records(folder, described)
        for archive in tar_records.take_archives(files):
            self.layouts.add("tar")
            if archive.table is not None:
                self.layouts.add("img2dataset")
            yield from tar_records.records(archive)
        for name in [name for name, file in files.items() if zip_records.is_zip(name) and file.problem is None]:
            self.layouts.add("zip")
            yield from self._zip_records(files.pop(name))
        posts = instagram.take_posts(files)
        if posts is not None:
            self.layouts.add("instagram-scraper")
        yield from instagram.records(folder, files, posts or [])
        yield from self._failed_downloads(folder)


def folder_records(tree: Tree, class_folders: bool = False, expected: Layout | None = None) -> Iterator[CrawlRecord]:
    """Yield the records of all folders of `tree`: files by name, then missing files, then subfolders by name.

    Raises:
        SourceError: the source is not a folder, contains no files, has no files in subfolders although `class_folders`
            is set, or contains nothing of the `expected` layout.
        StorageError: a fault of the machine; another attempt may succeed.
    """
    walk = Walk(tree)
    yield from walk.records(class_folders=class_folders)
    if not walk.files:
        raise SourceError(f"source {tree.root}: the folder contains no files")
    if class_folders and not walk.labelled:
        raise SourceError(f"source {tree.root}: no files in class folders; expected one subfolder per class")
    if expected is not None and expected not in walk.layouts:
        raise SourceError(f"source {tree.root}: no files of type {expected}; expected {LAYOUT_DESCRIPTIONS[expected]}")
