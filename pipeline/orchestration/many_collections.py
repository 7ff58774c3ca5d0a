"""Process many collections on one cluster at the same time; a collection that fails does not affect the others."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from pipeline.clustering.pool import TrainingPool
from pipeline.clustering.trial import Train
from pipeline.config import JobConfig
from pipeline.console import about, say
from pipeline.errors import ConfigError, PipelineError, SourceError, user_error
from pipeline.orchestration.collection import run_collection
from pipeline.session import leave_room_for_training
from pipeline.storage import open_storage

MIN_COLLECTIONS_AT_ONCE = 8
"""Minimum number of collections in progress: while some are trained, others are ingested and reported."""
WORKER_GROUP_FIELDS = (
    "workers",
    "cpus_per_worker",
    "gpus_per_worker",
    "device",
    "collective_timeout_s",
    "max_failures",
)
"""Clustering settings that must be equal for all collections, because the same workers train all trials."""


def run_collections(table: Path, config_of: Callable[[dict[str, str]], JobConfig]) -> None:
    """Run the job of every row of the CSV file `table`; running it again does only what is not done yet.

    Args:
        table: CSV file with a column ``collection`` and further columns for `config_of`; empty cells are left out.
        config_of: function that returns the configuration of a row, or raises ConfigError.

    Raises:
        SourceError: the table cannot be read, or has no rows.
        PipelineError: some collections failed; they have been listed on the console, and all others are done.
    """
    rows = _rows(table)
    failed: dict[str, PipelineError] = {}
    jobs: dict[str, JobConfig] = {}
    for number, row in rows:
        try:
            config = config_of(row)
            _check(config, jobs)
        except ConfigError as error:
            failed[f"row {number} ({row.get('collection') or 'no collection'})"] = error
        else:
            jobs[config.collection] = config
    if jobs:
        leave_room_for_training()
        with _pool_for(list(jobs.values())) as pool, _threads(_collections_at_once()) as threads:
            running = {threads.submit(_run, config, pool.train): name for name, config in jobs.items()}
            for done, future in enumerate(as_completed(running), start=1):
                name = running[future]
                failure = future.result()
                if failure is not None:
                    failed[name] = failure
                state = f"failed: {failed[name]}" if name in failed else "done"
                say("many", f"{done} of {len(running)} collections ended, {name} {state}")
    for name, failure in failed.items():
        say("failed", f"{name}: {failure}")
    if failed:
        raise PipelineError(
            f"{len(failed)} of {len(rows)} collections failed; run the same command again to retry them"
        )
    say("done", f"all {len(rows)} collections")


def _pool_for(jobs: list[JobConfig]) -> TrainingPool:
    """Return a pool that trains the trials of all `jobs`; their settings of worker groups are equal."""
    return TrainingPool(jobs[0].clustering, sum(job.clustering.n_trials for job in jobs))


@contextmanager
def _threads(n: int) -> Iterator[ThreadPoolExecutor]:
    """Context with a pool of `n` threads; if it is interrupted, collections that have not begun are cancelled."""
    threads = ThreadPoolExecutor(n, "collection")
    try:
        yield threads
    except BaseException:
        threads.shutdown(wait=False, cancel_futures=True)
        raise
    threads.shutdown()


def _collections_at_once() -> int:
    """Return the number of collections in progress: twice the number of GPUs, or of CPUs if there is no GPU."""
    import ray

    resources = ray.cluster_resources()
    return max(MIN_COLLECTIONS_AT_ONCE, int(2 * (resources.get("GPU") or resources.get("CPU", 1))))


def _run(config: JobConfig, train: Train) -> PipelineError | None:
    """Run the job of one collection; return its failure, or None. Exceptions of any kind fail only this collection."""
    with about(config.collection):
        try:
            for line in run_collection(open_storage(config.workspace), config, train):
                say(*line.split(maxsplit=1))
        except Exception as error:
            return user_error(error) or PipelineError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return None


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of `table` without empty cells, each with its line number."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            if "collection" not in (reader.fieldnames or ()):
                raise SourceError(f"--manifest {table}: expected a header with a column named collection")
            rows = []
            for row in reader:
                number = reader.line_num
                if None in row:
                    raise SourceError(f"--manifest {table}, row {number}: more cells than the header has")
                rows.append((number, {name: cell.strip() for name, cell in row.items() if cell and cell.strip()}))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"--manifest {table}: {getattr(error, 'strerror', None) or error}") from error
    if not rows:
        raise SourceError(f"--manifest {table}: no rows below the header")
    return rows


def _check(config: JobConfig, others: dict[str, JobConfig]) -> None:
    """Raise ConfigError if `config` conflicts with the jobs `others` of earlier rows, by collection."""
    if config.collection in others:
        raise ConfigError(f"collection {config.collection}: an earlier row already names it; remove one of the rows")
    first = next(iter(others.values()), config)
    for name in WORKER_GROUP_FIELDS:
        if getattr(config.clustering, name) != getattr(first.clustering, name):
            raise ConfigError(f"clustering.{name}: must be the same for all collections; set it outside the table")
