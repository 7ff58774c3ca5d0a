"""Finds all traces of forgotten images in crawls, and removes them.

All images are found before any is removed, because removing an image also removes its links to its duplicates. One Ray
task per shard searches the rows. A second task per shard with matches removes them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.console import Progress
from pipeline.errors import StorageError
from pipeline.ingest.download.urls import is_url
from pipeline.ingest.forget.names import (
    FORGOTTEN,
    NO_NAMES,
    Names,
    are_forgotten,
    cleared,
    listed,
    names_from,
    names_in,
)
from pipeline.ingest.plan import SHARD_KEY, plan_writer
from pipeline.ingest.repeats.dedup import accepted_samples
from pipeline.paths import CrawlPaths, crawls_folder
from pipeline.session import connect_ray, ray_task, run_bounded
from pipeline.shards import publish_shard
from pipeline.storage import Storage, local_writes, read_table, scratch_folder, write_table

CONTENT_COLUMNS = ["image_id", "duplicate_of", "sha256"]
"""Columns whose names depend on the content of a file, not on its address."""

COLUMNS = ["record", "status", "reason", "source_uri", "source_url", *CONTENT_COLUMNS]
"""Columns that the search reads."""

Shards = Mapping[CrawlPaths, list[int]]
"""Indices of the built shards (those whose rows exist) by crawl."""


@dataclass(frozen=True)
class Found:
    """The matches of a search for forgotten images in one shard."""

    records: list[int]
    """Positions in the plan of the records to be removed, and of those that were removed earlier."""
    rows: int
    """Number of rows to be cleared."""
    images: int
    """Number of these rows that are accepted, so that their images are in the tar."""
    names: set[str]
    """Names of the images of these rows, and of the images that they repeat."""
    pages: set[str]
    """Names of the addresses in ``source_url`` of these rows, which other images may share (the page of a post)."""
    shared: set[str]
    """The searched pages that another image of the shard, which does not match, also has."""
    matched: set[str]
    """The searched names that occur in these rows."""


def built_shards(storage: Storage, collection: str) -> Shards:
    """List the built shards of all crawls of `collection`, complete or not."""
    built: dict[CrawlPaths, list[int]] = {}
    for key in storage.list(crawls_folder(collection)):
        paths = CrawlPaths.of(key)
        index = paths.shard_of_rows(key)
        built.setdefault(paths, []).extend([] if index is None else [index])
    return built


def find_all(storage: Storage, shards: Shards, names: Names) -> tuple[Names, dict[CrawlPaths, dict[int, Found]]]:
    """Extend `names` to all names of these images and of all their duplicates, and find all matches.

    The search is repeated until it adds no further names, so duplicates of duplicates are found, too. An address in
    ``source_url`` is a name of its image only if no other image has it: all images of a post share its page.

    Returns the extended names, and the matches by crawl and shard.
    """
    pages = NO_NAMES
    while True:
        found = find_forgotten(storage, shards, names, pages)
        parts = [part for of_crawl in found.values() for part in of_crawl.values()]
        further = {name for part in parts for name in part.names}
        further |= set(pages.astype("U64")).difference(*(part.shared for part in parts))
        for paths in shards:
            further |= _names_in_repeats(storage, paths, names)
        all_names = names_from({*names.astype("U64"), *further})
        all_pages = names_from({*pages.astype("U64"), *(page for part in parts for page in part.pages)})
        if len(all_names) == len(names) and len(all_pages) == len(pages):
            return names, found
        names, pages = all_names, all_pages


def find_forgotten(
    storage: Storage, shards: Shards, names: Names, pages: Names = NO_NAMES
) -> dict[CrawlPaths, dict[int, Found]]:
    """Search `shards` for `names`, with one Ray task each; return the matches by crawl and shard."""
    import ray

    connect_ray()
    task, searched = ray_task(find_in_shard), (ray.put(names), ray.put(pages))
    todo = [(paths, index) for paths, indices in shards.items() for index in indices]
    found: dict[CrawlPaths, dict[int, Found]] = {paths: {} for paths in shards}
    with Progress("search", len(todo), "shard") as progress:
        for (paths, index), part in run_bounded(lambda shard: task.remote(storage, *shard, *searched), todo):
            found[paths][index] = part
            progress.advance(1)
    return found


def find_in_shard(storage: Storage, paths: CrawlPaths, index: int, names: Names, pages: Names) -> Found:
    """Search shard `index` for `names`, and for other images that have one of `pages`."""
    table = read_table(storage, paths.rows(index), COLUMNS)
    is_match = are_forgotten(table, names)
    rows = table.filter(pa.array(is_match))
    has_image = pc.field("image_id").is_valid() | pc.field("duplicate_of").is_valid()
    images, others = rows.filter(has_image), table.filter(pa.array(~is_match)).filter(has_image)
    removed_earlier = table.filter(pc.field("reason") == FORGOTTEN)
    return Found(
        records=[*rows["record"].to_pylist(), *removed_earlier["record"].to_pylist()],
        rows=rows.num_rows,
        images=pc.sum(pc.equal(rows["status"], "accepted")).as_py() or 0,
        # The content of a row without an image identifies nothing: many addresses may answer with the same login page.
        names=names_in(images.select(CONTENT_COLUMNS))
        | names_in(rows.filter(_is_url(rows["source_uri"])).select(["source_uri"])),
        pages=names_in(rows.select(["source_url"])),
        shared=listed(pages, names_in(others.select(["source_uri", "source_url"]))) if len(pages) else set(),
        matched=listed(names, names_in(rows)),
    )


def remove(storage: Storage, paths: CrawlPaths, found: Mapping[int, Found], names: Names) -> None:
    """Remove the matches `found` for `names` from the shards of the crawl `paths`, and from repeats.parquet."""
    import ray

    if todo := sorted(index for index, part in found.items() if part.rows):
        connect_ray()
        task, searched = ray_task(remove_from_shard), ray.put(names)
        with Progress("forget", len(todo), "shard") as progress:
            for _ in run_bounded(lambda index: task.remote(storage, paths, index, searched), todo):
                progress.advance(1)
    if storage.exists(paths.repeats):
        repeats = read_table(storage, paths.repeats)
        if (forgotten := are_forgotten(repeats, names)).any():
            write_table(storage, paths.repeats, repeats.filter(pa.array(~forgotten)))


def remove_from_shard(storage: Storage, paths: CrawlPaths, index: int, names: Names) -> None:
    """Write shard `index` again without the images that match `names`, and clear their rows except for the position.

    The tar is published before the rows: if the job is interrupted in between, the rows still match, and the next job
    finds them again. The tar may lack duplicates whose dropping was interrupted; their rows are rejected later.
    """
    rows = read_table(storage, paths.rows(index))
    rows = cleared(rows, are_forgotten(rows, names))
    samples, _ = accepted_samples(storage, paths, index, rows)
    publish_shard(storage, paths.shard(index), samples)
    write_table(storage, paths.rows(index), rows)


def write_without(plan: Path | pa.NativeFile, path: Path, records: Collection[int], names: Names) -> set[str]:
    """Copy `plan` to the local file `path`, and clear the `records` at these positions and those that match `names`.

    Returns the names of the cleared records. Only one row group is held in memory at a time.
    """
    removed: set[str] = set()
    with pq.ParquetFile(plan) as file, local_writes(path), plan_writer(path) as writer:
        for i in range(file.num_row_groups):
            group = file.read_row_group(i)
            forgotten = np.isin(group["record"].to_numpy(), list(records)) | are_forgotten(group, names)
            removed |= names_in(group.filter(pa.array(forgotten)))
            writer.write_table(cleared(group, forgotten), row_group_size=group.num_rows)
        writer.add_key_value_metadata({SHARD_KEY: file.metadata.metadata[SHARD_KEY]})
    return removed


def publish_plan(
    storage: Storage, paths: CrawlPaths, plan: Path | pa.NativeFile, found: Mapping[int, Found], names: Names
) -> set[str]:
    """Publish `plan` without the records that were `found` in the shards or that match `names`.

    Returns the names of the records that were removed. Raises StorageError if `plan` cannot be read as a plan.
    """
    records = [record for part in found.values() for record in part.records]
    with scratch_folder() as folder:
        try:
            removed = write_without(plan, folder / "plan.parquet", records, names)
        except pa.ArrowException as error:
            raise StorageError(f"{storage.uri(paths.plan)}: not a valid plan ({error})") from error
        storage.publish(folder / "plan.parquet", paths.plan)
    return removed


def _names_in_repeats(storage: Storage, paths: CrawlPaths, names: Names) -> set[str]:
    """Return all names in the rows of repeats.parquet whose dropped or kept image is in `names`."""
    if not storage.exists(paths.repeats):
        return set()
    repeats = read_table(storage, paths.repeats)
    return names_in(repeats.filter(pa.array(are_forgotten(repeats, names))))


def _is_url(addresses: pa.ChunkedArray) -> pa.Array:
    return pa.array([is_url(address or "") for address in addresses.to_pylist()], pa.bool_())
