"""What a source is, found out by looking or named, and its records: a stream that always has the same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from pipeline.config import SourceType
from pipeline.errors import SourceError
from pipeline.ingest.sources.archives import Archive, is_tar
from pipeline.ingest.sources.archives import records as tar_records
from pipeline.ingest.sources.arrays_on_s3 import array_records, holds_idx
from pipeline.ingest.sources.folder import EXPECTED, folder_records
from pipeline.ingest.sources.labelled_arrays import IDX_IMAGES, idx_records, looks_like_idx, npz_records
from pipeline.ingest.sources.megadepth import is_scene, refuse_tree, scene_of, scene_records, scenes_below
from pipeline.ingest.sources.table_rows import list_rows
from pipeline.ingest.sources.tables import READERS, looks_like_table, reader_of, table_records
from pipeline.ingest.sources.tars import BrokenTar
from pipeline.ingest.sources.tree import File, Folder, LocalTree, Tree, open_tree
from pipeline.records import CrawlRecord


def read_records(
    source: str | Sequence[str], source_type: SourceType = "auto", url_column: str | None = None
) -> Iterator[CrawlRecord]:
    """The records of `source`, which `IngestConfig.source_type` describes; of several, one after the other.

    Args:
        source: a folder or file, local or at ``s3://bucket/prefix``; or a list of them, all of `source_type`.
        source_type: what they are; auto looks at each.
        url_column: of tables, where the column of addresses has no usual name.

    Raises:
        SourceError: a source is missing, is not of its type, cannot be listed, or holds nothing.
        StorageError: the machine is at fault, and another attempt may succeed.
    """
    for number, one in enumerate([source] if isinstance(source, str) else source):
        for record in _read_one(one, source_type, url_column):
            # Two sources may have files of the same name.
            yield replace(record, fingerprint=f"{number}:{record.fingerprint}") if number else record


def source_root(source: str) -> str:
    """The absolute address that `source` names. Raises SourceError where it cannot be a source."""
    return open_tree(source).root


def count_candidates(
    source: str | Sequence[str], at_most: int, source_type: SourceType = "auto", url_column: str | None = None
) -> int:
    """How many records of `source` may become images, counting no further than `at_most`.

    Raises what `read_records` does.
    """
    records = read_records(source, source_type, url_column)
    return sum(1 for _ in islice((record for record in records if record.problem is None), at_most))


def _read_one(source: str, source_type: SourceType, url_column: str | None) -> Iterator[CrawlRecord]:
    tree = open_tree(source)
    if source_type in {"auto", "megadepth"} and not tree.exists():
        tree = scene_of(source) or tree
    found = _detect(tree) if source_type == "auto" else source_type
    if url_column is not None and found != "table" and tree.exists():
        raise SourceError(
            f"source {tree.root}: a {found} has no columns; leave --url-column out, or crawl it by itself"
        )
    if found in {"idx", "npz"}:
        if not isinstance(tree, LocalTree):
            return array_records(tree, "idx" if found == "idx" else "npz")
        return idx_records(tree.path) if found == "idx" else npz_records(tree.path)
    if found == "table":
        return table_records(tree, url_column)
    if found == "megadepth":
        return scene_records(tree)
    if found in {"tar", "img2dataset"} and (file := tree.file()) is not None:
        return _one_tar(tree, file)
    expected = found if found in EXPECTED else None
    return folder_records(tree, class_folders=found == "class-folders", expected=expected)


def _detect(tree: Tree) -> SourceType:
    """What `tree` is by its name and by what it holds."""
    if isinstance(tree, LocalTree) and looks_like_idx(tree.path):
        return "idx"
    if (file := tree.file()) is not None:
        return _detect_file(file)
    if not tree.exists():
        return "folder"  # which says that there is none
    return _detect_folder(tree, tree.list())


def _detect_folder(tree: Tree, here: Folder) -> SourceType:
    if not isinstance(tree, LocalTree) and holds_idx(here):
        return "idx"
    if is_scene(tree, here):
        return "megadepth"
    refuse_tree(tree, scenes_below(tree, here))
    readers = [reader_of(file.name) for file in here.files if not file.name.startswith("_")]  # such as _SUCCESS
    # A text in a folder may be anything; as a table it has to be the source itself, or named.
    if readers and not here.folders and not {None, list_rows} & set(readers):
        return "table"
    return "folder"


def _detect_file(file: File) -> SourceType:
    if file.name.lower().endswith(".npz"):
        return "npz"
    if IDX_IMAGES.search(file.name):
        return "idx"
    if is_tar(file.name):
        return "tar"
    if looks_like_table(file):
        return "table"
    raise SourceError(
        f"source {file.shown}: expected a folder, found a file that is no tar, no table ({', '.join(READERS)}) and "
        "no array (IDX, .npz)"
    )


def _one_tar(tree: Tree, file: File) -> Iterator[CrawlRecord]:
    try:
        yield from tar_records(Archive(file), must_be_tar=True)
    except BrokenTar as error:
        raise SourceError(f"source {tree.root}: not a tar of files ({error}); fetch it again") from error
