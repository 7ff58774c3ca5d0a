"""What crawls have of forgotten images is found, with all that belongs to it, and removed.

Finding comes first: whoever removes an image loses what led from it to its repeats. One Ray task per shard reads the
rows, and one per shard that has something removes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.console import Progress
from pipeline.errors import StorageError
from pipeline.ingest.download.downloads import is_url
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
from pipeline.ingest.plan import write_without
from pipeline.ingest.repeats.dedup import accepted_samples
from pipeline.ingest.tasks import ray_task
from pipeline.paths import CrawlPaths, crawls_of
from pipeline.session import connect_ray, run_bounded
from pipeline.shards import publish_shard
from pipeline.storage import Storage, read_table, scratch_folder, write_table

OF_CONTENT = ["image_id", "duplicate_of", "sha256"]
COLUMNS = ["record", "status", "reason", "source_uri", "source_url", *OF_CONTENT]

Shards = Mapping[CrawlPaths, list[int]]
"""Shards of crawls whose rows are there."""


@dataclass(frozen=True)
class Found:
    """What a shard has of forgotten images."""

    records: list[int]
    """Places in the plan of what is to be removed, and of what was."""
    rows: int
    """To be cleared."""
    images: int
    """Of these: accepted, so that they are in the tar."""
    names: set[str]
    """Of the images of these rows, and of those that they repeat."""
    pages: set[str]
    """Names of further addresses of these rows, which may be those of other images, too."""
    shared: set[str]
    """Those of the pages asked for that another image of the shard has."""
    matched: set[str]
    """Those of the names asked for that these rows have."""


def built_shards(storage: Storage, collection: str) -> Shards:
    """All crawls of `collection`, complete or not, with their shards whose rows are there."""
    built: dict[CrawlPaths, list[int]] = {}
    for key in storage.list(crawls_of(collection)):
        paths = CrawlPaths.of(key)
        index = paths.shard_of_rows(key)
        built.setdefault(paths, []).extend([] if index is None else [index])
    return built


def find_all(storage: Storage, shards: Shards, names: Names) -> tuple[Names, dict[CrawlPaths, dict[int, Found]]]:
    """All names of the images that `names` are of, of their repeats and the repeats of those; and where they are.

    An image's further address is a name of it as long as no other image has it: that of a post is many images'.
    """
    pages = NO_NAMES
    while True:
        found = find(storage, shards, names, pages)
        parts = [part for of_crawl in found.values() for part in of_crawl.values()]
        more = {name for part in parts for name in part.names}
        more |= set(pages.astype("U64")).difference(*(part.shared for part in parts))
        for paths in shards:
            more |= _names_in_repeats(storage, paths, names)
        all_names = names_from({*names.astype("U64"), *more})
        all_pages = names_from({*pages.astype("U64"), *(page for part in parts for page in part.pages)})
        if len(all_names) == len(names) and len(all_pages) == len(pages):
            return names, found
        names, pages = all_names, all_pages


def find(storage: Storage, shards: Shards, names: Names, pages: Names = NO_NAMES) -> dict[CrawlPaths, dict[int, Found]]:
    """What `shards` have of `names`, one Ray task each."""
    import ray

    connect_ray()
    task, asked = ray_task(find_in_shard), (ray.put(names), ray.put(pages))
    todo = [(paths, index) for paths, indices in shards.items() for index in indices]
    found: dict[CrawlPaths, dict[int, Found]] = {paths: {} for paths in shards}
    with Progress("search", len(todo), "shard") as progress:
        for (paths, index), part in run_bounded(lambda shard: task.remote(storage, *shard, *asked), todo):
            found[paths][index] = part
            progress.advance(1)
    return found


def find_in_shard(storage: Storage, paths: CrawlPaths, index: int, names: Names, pages: Names) -> Found:
    """What shard `index` has of `names`, and which of `pages` are those of its other images."""
    table = read_table(storage, paths.rows(index), COLUMNS)
    named = are_forgotten(table, names)
    rows = table.filter(pa.array(named))
    image = pc.field("image_id").is_valid() | pc.field("duplicate_of").is_valid()
    images, others = rows.filter(image), table.filter(pa.array(~named)).filter(image)
    gone = table.filter(pc.field("reason") == FORGOTTEN)
    return Found(
        records=[*rows["record"].to_pylist(), *gone["record"].to_pylist()],
        rows=rows.num_rows,
        images=pc.sum(pc.equal(rows["status"], "accepted")).as_py() or 0,
        # What is no image may be what any address answers, such as the page of a login.
        names=names_in(images.select(OF_CONTENT))
        | names_in(rows.filter(_is_url(rows["source_uri"])).select(["source_uri"])),
        pages=names_in(rows.select(["source_url"])),
        shared=listed(pages, names_in(others.select(["source_uri", "source_url"]))) if len(pages) else set(),
        matched=listed(names, names_in(rows)),
    )


def remove(storage: Storage, paths: CrawlPaths, found: Mapping[int, Found], names: Names) -> None:
    """Take what was `found` of `names` out of the shards of the crawl `paths`, and out of decisions about repeats."""
    import ray

    if todo := sorted(index for index, part in found.items() if part.rows):
        connect_ray()
        task, asked = ray_task(remove_from_shard), ray.put(names)
        with Progress("forget", len(todo), "shard") as progress:
            for _ in run_bounded(lambda index: task.remote(storage, paths, index, asked), todo):
                progress.advance(1)
    if storage.exists(paths.repeats):
        repeats = read_table(storage, paths.repeats)
        if (forgotten := are_forgotten(repeats, names)).any():
            write_table(storage, paths.repeats, repeats.filter(pa.array(~forgotten)))


def remove_from_shard(storage: Storage, paths: CrawlPaths, index: int, names: Names) -> None:
    """Write shard `index` again without what is in `names`; of its rows, only the places in the plan stay.

    The tar goes first: an interruption in between leaves accepted rows, by which they are found again. It may lack
    repeats whose dropping was interrupted; they are dropped again, from the rows.
    """
    rows = read_table(storage, paths.rows(index))
    rows = cleared(rows, are_forgotten(rows, names))
    samples, _ = accepted_samples(storage, paths, index, rows)
    publish_shard(storage, paths.shard(index), samples)
    write_table(storage, paths.rows(index), rows)


def publish_plan(
    storage: Storage, paths: CrawlPaths, plan: Path | pa.NativeFile, found: Mapping[int, Found], names: Names
) -> set[str]:
    """Publish `plan` without what was `found` in the shards, or is in `names`; the names that it no longer has.

    Raises StorageError where it is no plan.
    """
    records = [record for part in found.values() for record in part.records]
    with scratch_folder() as folder:
        try:
            gone = write_without(plan, folder / "plan.parquet", records, names)
        except pa.ArrowException as error:
            raise StorageError(f"{storage.uri(paths.plan)}: not a plan ({error})") from error
        storage.publish(folder / "plan.parquet", paths.plan)
    return gone


def _names_in_repeats(storage: Storage, paths: CrawlPaths, names: Names) -> set[str]:
    """Names of images that are to be dropped as repeats of those in `names`, or that those repeat."""
    if not storage.exists(paths.repeats):
        return set()
    repeats = read_table(storage, paths.repeats)
    return names_in(repeats.filter(pa.array(are_forgotten(repeats, names))))


def _is_url(addresses: pa.ChunkedArray) -> pa.Array:
    return pa.array([is_url(address or "") for address in addresses.to_pylist()], pa.bool_())
