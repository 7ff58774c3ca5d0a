"""The ingest stage: list the crawl, build its shards with Ray, keep repeats once, close the crawl with its totals.

A crawl's id comes from its listing and the configuration, so the same command finds its own work: a complete crawl
is left as it is, a shard whose rows are there is not built again.
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
from pipeline.console import Progress, say
from pipeline.errors import ConfigError
from pipeline.ingest.accounting import RATES, account, in_words, rates, rates_in_words, sizes_in_words
from pipeline.ingest.download.downloads import is_url
from pipeline.ingest.download.host_limits import limits_of, start_limiter
from pipeline.ingest.forget.names import Names, read_forgotten
from pipeline.ingest.forget.removal import find, publish_plan, remove
from pipeline.ingest.plan import Plan, write_plan
from pipeline.ingest.repeats.dedup import Known, drop_repeats, find_repeats, known_images
from pipeline.ingest.sampling import draw_sample
from pipeline.ingest.shard import UNREACHABLE, build_shard, rebuild_shard
from pipeline.ingest.sources.detect import read_records, source_root
from pipeline.ingest.sources.tree import is_inside
from pipeline.ingest.tasks import ray_task
from pipeline.ingest.text import storable
from pipeline.paths import CrawlPaths
from pipeline.records import Crawl, CrawlRecord
from pipeline.session import connect_ray, run_bounded
from pipeline.shards import complete_crawls
from pipeline.storage import Storage, read_table, read_tables, write_json, write_table

SCHEMA_VERSION = 3
"""Of shards, rows and crawl.json. Part of the crawl's id: a change of the format is a new crawl."""

IN_THE_LISTING = ("source_type", "url_column", "sample", "sample_seed")
NOT_IN_THE_ID = dict.fromkeys(IN_THE_LISTING, True) | {"http": set(HttpConfig.PACE)}
"""What decides which records there are, and so is in the listing's digest already; and how patiently they are read."""


def ingest(storage: Storage, config: JobConfig) -> Crawl:
    """Ingest the crawl `config.sources` into its collection; needs a Ray session unless the crawl is complete.

    Raises:
        ConfigError: the workspace lies inside the source.
        SourceError: the source is missing or holds nothing.
        StorageError: a read or a write failed, again and again.
    """
    roots = [source_root(source) for source in config.sources]
    check_apart(config.sources, storage)
    if len(set(roots)) < len(roots):
        raise ConfigError("source: the same place is named twice")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        records: Iterable[CrawlRecord] = read_records(
            config.sources, config.ingest.source_type, config.ingest.url_column
        )
        if config.ingest.sample is not None:
            records = draw_sample(records, config.ingest.sample, config.ingest.sample_seed)
        forgotten = read_forgotten(storage, config.collection)
        plan = write_plan(records, Path(folder) / "plan.parquet", config.ingest.records_per_shard, forgotten)
        crawl_id = digest(SCHEMA_VERSION, plan.listing_digest, config.ingest.model_dump(exclude=NOT_IN_THE_ID))
        paths = CrawlPaths(config.collection, crawl_id)
        crawls = {crawl.crawl_id: crawl for crawl in complete_crawls(storage, config.collection)}
        if (complete := crawls.get(crawl_id)) is not None:
            unreachable = complete.rejected.get(UNREACHABLE, 0)
            if not (unreachable and config.ingest.http.retry_unreachable):
                say("ingest", f"crawl {crawl_id} is complete already, nothing to do: {in_words(complete)}")
                return complete
            # Shards change from here on: whoever is interrupted finds a crawl that is not complete, and goes on.
            say("ingest", f"crawl {crawl_id} is opened again for {unreachable} unreachable records")
            storage.delete(paths.repeats)
            storage.delete(paths.marker)
            del crawls[crawl_id]
        shown = ", ".join(map(storable, roots))
        say("ingest", f"crawl {crawl_id}: {plan.records} records of {shown} in {plan.n_shards} shards")
        if not len(forgotten):  # else it is known from the shards which contents the plan must not describe
            storage.publish(plan.path, paths.plan)
        known = known_images(storage, crawls.values(), config.ingest)
        tasks = _Tasks(storage, paths, plan, known, config.ingest, forgotten)
        built = _build_shards(tasks)
        if not storage.exists(paths.repeats):
            # Whoever builds nothing opens a crawl again, or may go on with a round that was interrupted.
            built += _retry_unreachable(tasks, config.ingest.http.rounds - (built > 0))
            repeats = find_repeats(storage, paths, plan.n_shards, known, crawls.values(), config.ingest)
            write_table(storage, paths.repeats, repeats)
        _drop(tasks, read_table(storage, paths.repeats))
        if len(forgotten):
            _forget(tasks, forgotten)
    crawl = account(storage, paths, plan.records, plan.n_shards, config.ingest)
    speed = rates(crawl, built, time.monotonic() - started)
    crawl = replace(crawl, statistics={**crawl.statistics, **(speed if complete is None else _rates_of(complete))})
    document = {
        **asdict(crawl),
        "schema_version": SCHEMA_VERSION,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": roots[0] if len(roots) == 1 else roots,
        "config": config.ingest.model_dump(),
    }
    write_json(storage, paths.marker, document)
    say("ingest", rates_in_words(built, speed))
    _say_outcome(crawl, storage.uri(paths.rows(0)))
    return crawl


def _say_outcome(crawl: Crawl, rows: str) -> None:
    """What became of `crawl`, and what the user can do about it; `rows` is an address that says more."""
    say("ingest", in_words(crawl))
    say("ingest", sizes_in_words(crawl.statistics))
    if UNREACHABLE in crawl.rejected:
        say("ingest", "--retry-unreachable with the same command tries the unreachable records again, and only them")
    if not crawl.accepted and crawl.rejected.get("duplicate", 0) + crawl.rejected.get("near_duplicate", 0):
        say("ingest", "every image is in the collection already, and stays as it is, with its label and caption")
    elif not crawl.accepted:
        say("ingest", f"no image was accepted; column reason of {rows} says why")


def _rates_of(crawl: Crawl) -> dict[str, float]:
    """How fast the whole of `crawl` was ingested: trying a few of its records again says nothing about that."""
    return {name: crawl.statistics[name] for name in RATES if name in crawl.statistics}


def check_apart(sources: Iterable[str], storage: Storage) -> None:
    """Raise ConfigError where the workspace lies inside one of its own `sources`: the next job would crawl it."""
    for source in sources:
        root = source_root(source)
        if "://" in storage.root:
            inside = f"{storage.root}/".startswith(f"{root}/")
        else:
            inside = "://" not in root and is_inside(storage.root, Path(source).expanduser().absolute())
        if inside:
            raise ConfigError(f"workspace {storage.root} lies inside the source {source}; choose a place outside")


def _with_limits(work: Callable[..., int]) -> Callable[..., int]:
    """`work` with what the job's limiter, its last argument, decides; without one, nothing is downloaded."""

    @functools.wraps(work)
    def with_limits(
        storage: Storage,
        paths: CrawlPaths,
        index: int,
        records: pa.Table,
        known: Known,
        forgotten: Names,
        config: IngestConfig,
        limiter: Any,
    ) -> int:
        limits = None if limiter is None else limits_of(limiter)
        return work(storage, paths, index, records, known, config, limits, forgotten)

    return with_limits


class _Tasks:
    """Runs the tasks over shards of one crawl; what they share is sent to Ray once, when there is a first task."""

    def __init__(
        self, storage: Storage, paths: CrawlPaths, plan: Plan, known: Known, config: IngestConfig, forgotten: Names
    ) -> None:
        self.storage = storage
        self.paths = paths
        self.plan = plan
        self.config = config
        self._known = known
        self._forgotten = forgotten

    def run(self, work: Callable[..., int], shards: list[int]) -> Iterator[tuple[int, int]]:
        """Each of `shards` and what `work` over it returned, as they end."""
        known, forgotten, limiter = self._shared
        task = ray_task(_with_limits(work))
        return run_bounded(
            lambda i: task.remote(
                self.storage, self.paths, i, self.plan.records_of(i), known, forgotten, self.config, limiter
            ),
            shards,
        )

    @functools.cached_property
    def _shared(self) -> tuple[Any, Any, Any]:
        """Known and forgotten files in Ray's object store, and the limiter where there is anything to download."""
        import ray

        connect_ray()
        limiter = start_limiter(self.config.http) if self.has_urls else None
        return ray.put(self._known), ray.put(self._forgotten), limiter

    @functools.cached_property
    def has_urls(self) -> bool:
        """Whether any record of the plan is to be downloaded."""
        file = pq.ParquetFile(self.plan.path)
        columns = (file.read_row_group(i, ["source_uri"]).column(0) for i in range(file.num_row_groups))
        return any(is_url(address.as_py()) for column in columns for address in column.drop_null())


def _build_shards(tasks: _Tasks) -> int:
    """Build the shards that are not there yet, one Ray task each; the number of records that went into them."""
    plan = tasks.plan
    todo = [i for i in range(plan.n_shards) if not tasks.storage.exists(tasks.paths.rows(i))]
    done = plan.records - sum(map(plan.size_of, todo))
    if done:
        say("ingest", f"{plan.n_shards - len(todo)} of {plan.n_shards} shards are done already, {len(todo)} to build")
    if not todo:
        return 0
    accepted = 0
    with Progress("ingest", plan.records, "img", done) as progress:
        for index, newly_accepted in tasks.run(build_shard, todo):
            accepted += newly_accepted
            progress.advance(plan.size_of(index), f"{accepted} accepted")
    return plan.records - done


def _retry_unreachable(tasks: _Tasks, rounds: int) -> int:
    """Try what could not be reached again, `rounds` times at most; the number of records that were tried."""
    config = tasks.config.http
    tried = 0
    for _ in range(rounds):
        unreachable = _count_unreachable(tasks)
        if not unreachable:
            break
        say(
            "ingest",
            f"{unreachable.total()} records of {len(unreachable)} shards are unreachable, tried again in "
            f"{config.round_pause_s:g} s",
        )
        time.sleep(config.round_pause_s)
        accepted = 0
        with Progress("retry", unreachable.total(), "img") as progress:
            for index, newly_accepted in tasks.run(rebuild_shard, sorted(unreachable)):
                accepted += newly_accepted
                progress.advance(unreachable[index], f"{accepted} accepted")
        tried += unreachable.total()
    return tried


def _count_unreachable(tasks: _Tasks) -> Counter[int]:
    """Number of unreachable records by shard, of all shards that have some."""
    found: Counter[int] = Counter()
    keys = map(tasks.paths.rows, range(tasks.plan.n_shards)) if tasks.has_urls else ()
    for index, table in enumerate(read_tables(tasks.storage, keys, ["reason"])):
        if unreachable := table["reason"].to_pylist().count(UNREACHABLE):
            found[index] = unreachable
    return found


def _forget(tasks: _Tasks, forgotten: Names) -> None:
    """Publish the plan without what is `forgotten`, and remove what an earlier attempt has built of it."""
    shards = {tasks.paths: list(range(tasks.plan.n_shards))}
    found = find(tasks.storage, shards, forgotten)[tasks.paths]
    remove(tasks.storage, tasks.paths, found, forgotten)
    publish_plan(tasks.storage, tasks.paths, tasks.plan.path, found, forgotten)


def _drop(tasks: _Tasks, repeats: pa.Table) -> None:
    shards = repeats["shard"].unique().to_pylist()
    if not shards:
        return
    connect_ray()
    drop = ray_task(drop_repeats)

    def submit(index: int) -> Any:
        return drop.remote(tasks.storage, tasks.paths, index, repeats.filter(pc.field("shard") == index))

    with Progress("repeats", len(shards), "shard") as progress:
        for _ in run_bounded(submit, sorted(shards)):
            progress.advance(1)
