"""The ingest stage: list the records of a crawl, build its shards with Ray, drop duplicates, publish the totals.

The id of a crawl is a digest of its listing and of the configuration. The same command therefore continues its own
work: a complete crawl is left unchanged, and a shard whose rows are published is not built again.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import HttpConfig, IngestConfig, JobConfig, digest
from pipeline.console import Progress, counted, say
from pipeline.errors import ConfigError
from pipeline.ingest.accounting import RATES, account, describe_outcome, describe_sizes, rates
from pipeline.ingest.download.host_limits import start_limiter
from pipeline.ingest.download.urls import is_url
from pipeline.ingest.forget.names import Names, clear_forgotten, read_forgotten
from pipeline.ingest.forget.removal import find_forgotten, publish_plan, remove
from pipeline.ingest.plan import Plan, draw_sample, write_plan
from pipeline.ingest.repeats.dedup import drop_repeats, find_repeats, known_images
from pipeline.ingest.shard import UNREACHABLE, ShardTask, build_shard, rebuild_shard
from pipeline.ingest.sources.detect import read_records, source_root
from pipeline.ingest.sources.metadata import storable
from pipeline.ingest.sources.s3 import use_access
from pipeline.ingest.sources.tables.table_records import TableOptions
from pipeline.ingest.sources.tree import is_inside
from pipeline.paths import CrawlPaths
from pipeline.records import Crawl, CrawlRecord
from pipeline.session import connect_ray, ray_task, run_bounded
from pipeline.shards import complete_crawls
from pipeline.storage import Storage, read_table, read_tables, write_json, write_table

SCHEMA_VERSION = 3
"""Version of the format of shards, rows and crawl.json. It is part of the crawl id, so that a new format gives a new
crawl."""

FIELDS_IN_LISTING = (
    "source_type", "s3_access", "url_column", "encoding", "video_thumbnails", "author_hash", "sample", "sample_seed",
)  # fmt: skip
"""Fields of `IngestConfig` that select the records; the digest of the listing covers them already."""

FIELDS_NOT_IN_ID = dict.fromkeys(FIELDS_IN_LISTING, True) | {"http": set(HttpConfig.PACING_FIELDS)}
"""Fields of `IngestConfig` that the crawl id does not depend on: the above, and the pace of downloads."""


def ingest(storage: Storage, config: JobConfig) -> Crawl:
    """Ingest the crawl `config.sources` into its collection; needs a Ray session unless the crawl is complete.

    Raises:
        ConfigError: the workspace lies inside a source, or a source is given twice.
        SourceError: a source is missing or has no records.
        StorageError: a read or a write failed repeatedly.
    """
    use_access(config.ingest.s3_access)
    roots = [source_root(source) for source in config.sources]
    check_workspace_location(config.sources, storage)
    if len(set(roots)) < len(roots):
        raise ConfigError("source: the same location is given twice; give each location once")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        plan, forgotten = _write_plan(storage, config, Path(folder) / "plan.parquet")
        crawl_id = digest(SCHEMA_VERSION, plan.listing_digest, _identity(config.ingest))
        paths = CrawlPaths(config.collection, crawl_id)
        earlier = {crawl.crawl_id: crawl for crawl in complete_crawls(storage, config.collection)}
        complete = earlier.pop(crawl_id, None)
        if complete is not None:
            if not (complete.rejected.get(UNREACHABLE) and config.ingest.http.retry_unreachable):
                say("ingest", f"crawl {crawl_id} is complete already, nothing to do: {describe_outcome(complete)}")
                return complete
            _reopen(storage, paths, complete)
        sources = ", ".join(map(storable, roots))
        say("ingest", f"crawl {crawl_id}: {plan.records} records of {sources} in {plan.n_shards} shards")
        if not len(forgotten):  # otherwise, `_take_down` publishes the plan without the removed images
            storage.publish(plan.path, paths.plan)
        known = known_images(storage, earlier.values(), config.ingest)
        tasks = _ShardTasks(ShardTask(storage, paths, config.ingest, known, forgotten), plan)
        processed = _build_shards(tasks)
        if not storage.exists(paths.repeats):
            # Building the shards was the first round. A job that built none reopens a crawl, or continues one whose
            # rounds may have been interrupted, and therefore gets all rounds.
            processed += _retry_unreachable(tasks, config.ingest.http.rounds - (processed > 0))
            repeats = find_repeats(storage, paths, plan.n_shards, known, earlier.values(), config.ingest)
            write_table(storage, paths.repeats, repeats)
        _drop_repeats(tasks, read_table(storage, paths.repeats))
        if len(forgotten):
            _take_down(tasks, forgotten)
    crawl = account(storage, paths, plan.records, plan.n_shards, config.ingest)
    speed = rates(crawl, processed, time.monotonic() - started)
    # Retrying a few records says nothing about how fast the whole crawl was ingested.
    crawl = replace(crawl, statistics={**crawl.statistics, **(speed if complete is None else _rates_of(complete))})
    _publish_marker(storage, paths, crawl, roots, config.ingest)
    _report_outcome(crawl, storage.uri(paths.rows(0)))
    return crawl


def _identity(config: IngestConfig) -> dict[str, Any]:
    """Return the fields of `config` that the crawl id depends on."""
    fields = config.model_dump(exclude=FIELDS_NOT_IN_ID)
    # A field that is younger than the ids of crawls counts only if it is set, so that these crawls keep their ids.
    if not config.http.robots_txt:
        del fields["http"]["robots_txt"]
    return fields


def _write_plan(storage: Storage, config: JobConfig, path: Path) -> tuple[Plan, Names]:
    """List the records of the sources, or a sample of them, and write them as a plan to the local file `path`.

    Returns the plan and the names of all images that the collection must forget.
    """
    tables = TableOptions.of(config.ingest)
    records: Iterable[CrawlRecord] = read_records(config.sources, config.ingest.source_type, tables)
    if config.ingest.sample is not None:
        records = draw_sample(records, config.ingest.sample, config.ingest.sample_seed)
    forgotten = read_forgotten(storage, config.collection)
    clear = functools.partial(clear_forgotten, names=forgotten)
    return write_plan(records, path, config.ingest.records_per_shard, clear), forgotten


def _reopen(storage: Storage, paths: CrawlPaths, complete: Crawl) -> None:
    """Make the `complete` crawl incomplete again, to retry its unreachable records.

    Its shards change from now on. If this job is interrupted, the next one finds an incomplete crawl and continues.
    """
    unreachable = complete.rejected[UNREACHABLE]
    say("ingest", f"crawl {complete.crawl_id} is reopened to retry {counted(unreachable, 'unreachable record')}")
    storage.delete(paths.repeats)
    storage.delete(paths.marker)


def _publish_marker(storage: Storage, paths: CrawlPaths, crawl: Crawl, roots: list[str], config: IngestConfig) -> None:
    """Publish crawl.json, which makes `crawl` complete; `roots` are the addresses of its sources."""
    document = {
        **asdict(crawl),
        "schema_version": SCHEMA_VERSION,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": roots[0] if len(roots) == 1 else roots,
        "config": config.model_dump(),
    }
    write_json(storage, paths.marker, document)


def _report_outcome(crawl: Crawl, rows_uri: str) -> None:
    """Print the totals of `crawl` and what the user can do next; `rows_uri` is the address of a table of its rows."""
    say("ingest", describe_outcome(crawl))
    say("ingest", describe_sizes(crawl.statistics))
    if UNREACHABLE in crawl.rejected:
        say("ingest", "to retry only the unreachable records, run the same command with --retry-unreachable")
    if "expired" in crawl.rejected:
        say(
            "ingest",
            "addresses of captured posts are valid for a few days only; ingest a capture soon after it was made",
        )
    if not crawl.accepted and crawl.rejected.get("duplicate", 0) + crawl.rejected.get("near_duplicate", 0):
        say("ingest", "all images are in the collection already; they keep their labels and captions")
    elif not crawl.accepted:
        say("ingest", f"no image was accepted; for the reasons, see the columns reason and detail of {rows_uri}")


def _rates_of(crawl: Crawl) -> dict[str, float]:
    """The rates at which all records of `crawl` were ingested."""
    return {name: crawl.statistics[name] for name in RATES if name in crawl.statistics}


def check_workspace_location(sources: Iterable[str], storage: Storage) -> None:
    """Raise ConfigError if the workspace lies inside one of its `sources`: the next job would crawl the workspace."""
    for source in sources:
        root = source_root(source)
        if "://" in storage.root:
            inside = f"{storage.root}/".startswith(f"{root}/")
        else:
            inside = "://" not in root and is_inside(storage.root, Path(source).expanduser().absolute())
        if inside:
            raise ConfigError(
                f"workspace {storage.root} lies inside the source {source}; choose a workspace outside of all sources"
            )


class _ShardTasks:
    """Runs Ray tasks over the shards of one crawl. The data that they share is sent to Ray once, on first use."""

    def __init__(self, task: ShardTask, plan: Plan) -> None:
        self.task = task
        self.plan = plan

    def run(self, work: Callable[[ShardTask, int, pa.Table], int], shards: list[int]) -> Iterator[tuple[int, int]]:
        """Run `work` on each of `shards`, and yield the shard with the result of `work` as the tasks finish."""
        shared, task = self._shared, ray_task(work)
        return run_bounded(lambda index: task.remote(shared, index, self.plan.records_of(index)), shards)

    @functools.cached_property
    def _shared(self) -> Any:
        """The `ShardTask` in Ray's object store, with a limiter if there is anything to download."""
        import ray

        connect_ray()
        limiter = start_limiter(self.task.config.http) if self.has_urls else None
        return ray.put(replace(self.task, limiter=limiter))

    @functools.cached_property
    def has_urls(self) -> bool:
        """Whether any record of the plan has to be downloaded."""
        file = pq.ParquetFile(self.plan.path)
        columns = (file.read_row_group(i, ["source_uri"]).column(0) for i in range(file.num_row_groups))
        return any(is_url(address.as_py()) for column in columns for address in column.drop_null())


def _build_shards(tasks: _ShardTasks) -> int:
    """Build the shards that do not exist yet, with one Ray task each; return the number of their records."""
    plan = tasks.plan
    todo = [i for i in range(plan.n_shards) if not tasks.task.storage.exists(tasks.task.paths.rows(i))]
    done = plan.records - sum(map(plan.size_of, todo))
    if done:
        say("ingest", f"{plan.n_shards - len(todo)} of {plan.n_shards} shards are done already, {len(todo)} to build")
    if not todo:
        return 0
    accepted = 0
    with Progress("ingest", plan.records, "record", done) as progress:
        for index, newly_accepted in tasks.run(build_shard, todo):
            accepted += newly_accepted
            progress.advance(plan.size_of(index), f"{accepted} accepted")
    return plan.records - done


def _retry_unreachable(tasks: _ShardTasks, rounds: int) -> int:
    """Retry the unreachable records in up to `rounds` rounds; return the number of retries over all rounds."""
    config = tasks.task.config.http
    retried = 0
    for _ in range(rounds):
        unreachable = _count_unreachable(tasks)
        if not unreachable:
            break
        records, shards = counted(unreachable.total(), "record"), counted(len(unreachable), "shard")
        say("ingest", f"unreachable: {records} of {shards}; retrying in {config.round_pause_s:g} s")
        time.sleep(config.round_pause_s)
        accepted = 0
        with Progress("retry", unreachable.total(), "record") as progress:
            for index, newly_accepted in tasks.run(rebuild_shard, sorted(unreachable)):
                accepted += newly_accepted
                progress.advance(unreachable[index], f"{accepted} accepted")
        retried += unreachable.total()
    return retried


def _count_unreachable(tasks: _ShardTasks) -> Counter[int]:
    """Number of unreachable records by shard; shards without any are left out."""
    counts: Counter[int] = Counter()
    keys = map(tasks.task.paths.rows, range(tasks.plan.n_shards)) if tasks.has_urls else ()
    for index, table in enumerate(read_tables(tasks.task.storage, keys, ["reason"])):
        if unreachable := table["reason"].to_pylist().count(UNREACHABLE):
            counts[index] = unreachable
    return counts


def _drop_repeats(tasks: _ShardTasks, repeats: pa.Table) -> None:
    """Drop the `repeats` (REPEATS_SCHEMA) from their shards, with one Ray task per shard."""
    shards = repeats["shard"].unique().to_pylist()
    if not shards:
        return
    connect_ray()
    drop = ray_task(drop_repeats)

    def submit(index: int) -> Any:
        return drop.remote(tasks.task.storage, tasks.task.paths, index, repeats.filter(pc.field("shard") == index))

    with Progress("repeats", len(shards), "shard") as progress:
        for _ in run_bounded(submit, sorted(shards)):
            progress.advance(1)


def _take_down(tasks: _ShardTasks, forgotten: Names) -> None:
    """Publish the plan without the `forgotten` images, and remove those that an earlier attempt has built."""
    shards = {tasks.task.paths: list(range(tasks.plan.n_shards))}
    found = find_forgotten(tasks.task.storage, shards, forgotten)[tasks.task.paths]
    remove(tasks.task.storage, tasks.task.paths, found, forgotten)
    publish_plan(tasks.task.storage, tasks.task.paths, tasks.plan.path, found, forgotten)
