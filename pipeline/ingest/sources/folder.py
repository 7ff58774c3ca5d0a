"""A folder of images with subfolders, and what scrapers leave in such folders.

Each folder is looked at on its own: posts of instaloader, files with a ``.json`` beside them, tars, the metadata of an
instagram-scraper dump. Every other regular file is a record, however little it looks like an image: what it holds
shows when it is decoded. Only one folder's names are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.errors import SourceError
from pipeline.ingest.sources import archives, gallery_dl, instaloader
from pipeline.ingest.sources.file_records import IMAGE_SUFFIXES, file_record, missing_record, suffix_of
from pipeline.ingest.sources.instagram import Post, read_posts
from pipeline.ingest.sources.tree import File, Folder, Tree
from pipeline.ingest.text import storable
from pipeline.records import CrawlRecord

Layout = Literal["instagram-scraper", "instaloader", "gallery-dl", "img2dataset", "tar"]

EXPECTED: dict[Layout, str] = {
    "instagram-scraper": "a file .json with GraphImages beside the images (its option --media-metadata)",
    "instaloader": "files such as 2020-09-13_12-26-40_UTC.jpg",
    "gallery-dl": "a file .json beside each image (its option --write-metadata)",
    "img2dataset": "tars with a table .parquet beside each",
    "tar": "files .tar, .tar.gz or .tgz",
}
"""What a folder of each layout holds."""


@dataclass
class Walk:
    """The records of the folders of a tree, and what was seen on the way."""

    tree: Tree
    files: int = 0
    """Records so far."""
    labelled: int = 0
    """Of them with a label."""
    layouts: set[Layout] = field(default_factory=set)
    """That were seen so far."""

    def records(self, start: Sequence[str] = ("",), class_folders: bool = False) -> Iterator[CrawlRecord]:
        """Those of the folders `start`, which are paths in the tree, each with its subfolders by name.

        With `class_folders`, the name of the first folder below the source is the label.
        """
        folders = list(reversed(start))
        while folders:
            folder = self.tree.list(folders.pop())
            label = storable(folder.path.partition("/")[0]) if class_folders and folder.path else None
            for record in self._of(folder):
                self.files += 1
                self.labelled += label is not None
                yield record if label is None else replace(record, label=label)
            folders.extend(reversed(folder.folders))

    def _of(self, folder: Folder) -> Iterator[CrawlRecord]:
        """The records of one folder, without its subfolders."""
        if folder.problem is not None:
            path = folder.path.rstrip("/")
            yield file_record(File(path, folder.uri.rstrip("/"), None, folder.problem))
            return
        files = {file.name: file for file in folder.files}
        if posts := instaloader.claim(files):
            self.layouts.add("instaloader")
            yield from instaloader.records(folder, posts)
        if described := gallery_dl.claim(files):
            self.layouts.add("gallery-dl")
            yield from gallery_dl.records(folder, described)
        for tar in archives.claim(files):
            self.layouts.add("tar")
            if tar.table is not None:
                self.layouts.add("img2dataset")
            yield from archives.records(tar)
        yield from self._instagram(folder, files)

    def _instagram(self, folder: Folder, files: dict[str, File]) -> Iterator[CrawlRecord]:
        """The rest of a folder, joined to the posts of an instagram-scraper dump where it has one."""
        listed: list[Post] = []
        for name, file in list(files.items()):
            if not name.lower().endswith(".json") or file.problem is not None:
                continue
            if (found := read_posts(file)) is not None:
                self.layouts.add("instagram-scraper")
                del files[name]
                listed += found
        posts: dict[object, Post] = {}
        for post in sorted(listed, key=lambda post: not post.urls):  # of two nodes of a post, the one that names files
            posts.setdefault(post.key, post)
        post_of: dict[str, Post] = {}
        for post in posts.values():
            for name in post.urls:
                post_of.setdefault(name, post)

        expected = {name: post for post in posts.values() for name in post.expected}
        for name, file in files.items():
            stored = storable(name)
            expected.pop(stored, None)
            if (owner := post_of.get(stored)) is None:
                yield file_record(file)
                continue
            is_video = owner.is_video and suffix_of(name) not in IMAGE_SUFFIXES
            said = replace(owner.metadata, source_url=owner.urls.get(stored))
            yield file_record(file, said, "video" if is_video else None)
        for name, post in expected.items():
            yield missing_record(folder, name, replace(post.metadata, source_url=post.urls.get(name)))
        for post in posts.values():
            if not post.urls:
                yield missing_record(folder, "", post.metadata)


def folder_records(tree: Tree, class_folders: bool = False, expected: Layout | None = None) -> Iterator[CrawlRecord]:
    """The records of all folders of `tree`: files by name, then missing ones, then subfolders by name.

    Raises:
        SourceError: it is no folder, holds no file, has no folder below it although `class_folders` are wanted, or
            nothing of the `expected` layout.
        StorageError: the machine is at fault, and another attempt may succeed.
    """
    walk = Walk(tree)
    yield from walk.records(class_folders=class_folders)
    if not walk.files:
        raise SourceError(f"source {tree.root}: the folder holds no file")
    if class_folders and not walk.labelled:
        raise SourceError(
            f"source {tree.root}: no class-folders, all its files lie in no folder below; expected one a class"
        )
    if expected is not None and expected not in walk.layouts:
        raise SourceError(f"source {tree.root}: nothing of {expected}; expected {EXPECTED[expected]}")
