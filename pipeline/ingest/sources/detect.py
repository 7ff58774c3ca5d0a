"""Detect the type of a source, unless it is given, and stream its records in an order that is always the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from pipeline.config import SourceType
from pipeline.errors import SourceError
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.archives.tar_records import Archive, is_tar
from pipeline.ingest.sources.archives.tar_records import records as tar_records
from pipeline.ingest.sources.archives.tars import BrokenTar
from pipeline.ingest.sources.archives.zip_records import is_zip, members_of, tables_in
from pipeline.ingest.sources.archives.zip_records import records as zip_records
from pipeline.ingest.sources.archives.zips import BrokenZip
from pipeline.ingest.sources.arrays.arrays_on_s3 import array_records, holds_idx
from pipeline.ingest.sources.arrays.labelled_arrays import IDX_IMAGES, idx_records, looks_like_idx, npz_records
from pipeline.ingest.sources.folder import LAYOUT_DESCRIPTIONS, folder_records
from pipeline.ingest.sources.megadepth import find_scene, is_scene, refuse_scenes, scene_records, scenes_below
from pipeline.ingest.sources.posts.captures import TOOLS
from pipeline.ingest.sources.tables.json_arrays import json_array_rows
from pipeline.ingest.sources.tables.line_rows import list_rows
from pipeline.ingest.sources.tables.table_records import (
    READERS,
    TableOptions,
    is_json_array,
    looks_like_table,
    reader_of,
    records_of_tables,
    table_records,
)
from pipeline.ingest.sources.tree import File, Folder, LocalTree, Tree, open_tree
from pipeline.records import CrawlRecord

DETECTED = TableOptions()


def read_records(
    source: str | Sequence[str], source_type: SourceType = "auto", tables: TableOptions = DETECTED
) -> Iterator[CrawlRecord]:
    """Yield the records of `source`; of several sources, one after the other.

    Args:
        source: a folder or file, local or at ``s3://bucket/prefix``; or a list of them, all of `source_type`.
        source_type: their type, as `IngestConfig.source_type` describes it; auto detects the type of each.
        tables: what the user says about tables; by default, everything is detected.

    Raises:
        SourceError: a source does not exist, is not of its type, cannot be listed, or is empty.
        StorageError: a fault of the machine; another attempt may succeed.
    """
    for number, path in enumerate([source] if isinstance(source, str) else source):
        for record in _read_source(path, source_type, tables):
            # Two sources may contain files of the same name.
            yield replace(record, fingerprint=f"{number}:{record.fingerprint}") if number else record


def source_root(source: str) -> str:
    """Return the absolute address of `source`. Raises SourceError where it cannot be the address of a source."""
    return open_tree(source).root


def count_candidates(
    source: str | Sequence[str], at_most: int, source_type: SourceType = "auto", tables: TableOptions = DETECTED
) -> int:
    """Count the records of `source` that may become images; stop at `at_most`.

    Raises the same errors as `read_records`.
    """
    records = read_records(source, source_type, tables)
    return sum(1 for _ in islice((record for record in records if record.problem is None), at_most))


def _read_source(source: str, source_type: SourceType, tables: TableOptions) -> Iterator[CrawlRecord]:
    tree = open_tree(source)
    if source_type in {"auto", "megadepth"} and not tree.exists():
        tree = find_scene(source) or tree
    detected = _detect(tree) if source_type == "auto" else source_type
    if tables.url_column is not None and detected != "table" and tree.exists():
        raise SourceError(
            f"source {tree.root}: a source of type {detected} has no columns; omit --url-column, or ingest this "
            "source separately"
        )
    if detected in {"idx", "npz"}:
        if not isinstance(tree, LocalTree):
            return array_records(tree, "idx" if detected == "idx" else "npz")
        return idx_records(tree.path) if detected == "idx" else npz_records(tree.path)
    if detected in {"table", *TOOLS}:
        return table_records(tree, tables, detected if detected in TOOLS else None)
    if detected == "megadepth":
        return scene_records(tree)
    if detected in {"tar", "img2dataset", "zip"} and (file := tree.file()) is not None:
        return _records_of_zip(tree, file, tables) if detected == "zip" else _records_of_tar(tree, file)
    expected = detected if detected in LAYOUT_DESCRIPTIONS else None
    return folder_records(tree, class_folders=detected == "class-folders", expected=expected)


def _detect(tree: Tree) -> SourceType:
    """Detect the type of `tree` from its name and its contents."""
    if isinstance(tree, LocalTree) and looks_like_idx(tree.path):
        return "idx"
    if (file := tree.file()) is not None:
        return _detect_file(file)
    if not tree.exists():
        return "folder"  # reading the folder raises the error for a missing source
    return _detect_folder(tree, tree.list())


def _detect_folder(tree: Tree, root_folder: Folder) -> SourceType:
    if not isinstance(tree, LocalTree) and holds_idx(root_folder):
        return "idx"
    if is_scene(tree, root_folder):
        return "megadepth"
    refuse_scenes(tree, scenes_below(tree, root_folder))
    # Files such as _SUCCESS are ignored.
    files = [file for file in root_folder.files if not file.name.startswith("_")]
    readers = {reader_of(file.name) for file in files}
    # A text file in a folder may be anything; it is only a table if it is the source itself, or if the type is given.
    # A JSON file may be the metadata of an image that is missing; it is a table if it holds a list.
    is_table = files and not root_folder.folders and not {None, list_rows} & readers
    if is_table and all(is_json_array(file) for file in files if reader_of(file.name) is json_array_rows):
        return "table"
    return "folder"


def _detect_file(file: File) -> SourceType:
    if file.name.lower().endswith(".npz"):
        return "npz"
    if IDX_IMAGES.search(file.name):
        return "idx"
    if is_tar(file.name):
        return "tar"
    if is_zip(file.name):
        return "zip"
    if looks_like_table(file):
        return "table"
    raise SourceError(
        f"source {file.printable_uri}: expected a folder, found a file that is neither a tar, nor a ZIP, nor a table "
        f"({', '.join(READERS)}), nor an array file (IDX, .npz)"
    )


def _records_of_tar(tree: Tree, file: File) -> Iterator[CrawlRecord]:
    try:
        yield from tar_records(Archive(file), must_be_tar=True)
    except BrokenTar as error:
        raise SourceError(f"source {tree.root}: not a tar of files ({error}); fetch it again") from error


def _records_of_zip(tree: Tree, file: File, tables: TableOptions) -> Iterator[CrawlRecord]:
    """Yield the records of a ZIP: its images, or the rows of its tables if it has no images."""
    try:
        members = members_of(file)
    except (BrokenZip, Rejected) as error:
        detail = error.detail if isinstance(error, Rejected) else error
        raise SourceError(f"source {tree.root}: not a ZIP of files ({detail}); fetch it again") from error
    if not members:
        raise SourceError(f"source {tree.root}: the ZIP contains no files")
    suffixes = tuple(suffix for suffix in READERS if reader_of(suffix) is not list_rows)
    if inner := tables_in(file, members, suffixes):
        yield from records_of_tables(inner, tables)
    else:
        yield from zip_records(file, members)
