"""Many collections through one cluster: their ingest and their trials share it, and one that fails fails alone."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import JobConfig
from pipeline.console import about, say
from pipeline.errors import ConfigError, PipelineError, SourceError, user_error
from pipeline.orchestration.collection import run_collection
from pipeline.orchestration.pool import LazyPool
from pipeline.session import leave_room_for_training
from pipeline.storage import open_storage

if TYPE_CHECKING:
    from pipeline.clustering.trial_queue import Work

AT_ONCE = 8
"""Collections under way at once, at least: while some are trained, others are ingested and reported."""
OF_A_GROUP = ("workers", "cpus_per_worker", "gpus_per_worker", "device", "collective_timeout_s", "max_failures")
"""What all collections have in common, since the same workers train their trials."""


def run_collections(table: Path, configured: Callable[[dict[str, str]], JobConfig]) -> None:
    """Run the job of every row of the CSV file `table`; the same table again does what is left.

    Args:
        table: column ``collection``, and others that `configured` understands; empty cells are as good as none.
        configured: the configuration of a row; raises ConfigError.

    Raises:
        SourceError: the table cannot be read, or has no row.
        PipelineError: some collections failed; they are listed before, the others are done.
    """
    rows = _rows(table)
    failed: dict[str, PipelineError] = {}
    jobs: dict[str, JobConfig] = {}
    for number, row in rows:
        try:
            config = configured(row)
            _check(config, jobs)
        except ConfigError as error:
            failed[f"row {number} ({row.get('collection') or 'no collection'})"] = error
        else:
            jobs[config.collection] = config
    if jobs:
        leave_room_for_training()
        with LazyPool(list(jobs.values())) as pool, _threads(_at_once()) as threads:
            running = {threads.submit(_run, config, pool.train): name for name, config in jobs.items()}
            for done, future in enumerate(as_completed(running), start=1):
                name = running[future]
                fault = future.result()
                if fault is not None:
                    failed[name] = fault
                state = f"failed: {failed[name]}" if name in failed else "done"
                say("many", f"{done} of {len(running)} collections ended, {name} {state}")
    for name, fault in failed.items():
        say("failed", f"{name}: {fault}")
    if failed:
        raise PipelineError(f"{len(failed)} of {len(rows)} collections failed; the same command tries them again")
    say("done", f"all {len(rows)} collections")


@contextmanager
def _threads(n: int) -> Iterator[ThreadPoolExecutor]:
    """As many threads; after an interruption, what has not begun does not begin."""
    threads = ThreadPoolExecutor(n, "collection")
    try:
        yield threads
    except BaseException:
        threads.shutdown(wait=False, cancel_futures=True)
        raise
    threads.shutdown()


def _at_once() -> int:
    """Collections under way at once: twice as many as the cluster has GPUs, or CPUs where it has none."""
    import ray

    resources = ray.cluster_resources()
    return max(AT_ONCE, int(2 * (resources.get("GPU") or resources.get("CPU", 1))))


def _run(config: JobConfig, train: Callable[[list[Work]], None]) -> PipelineError | None:
    """Why the job failed, if it did: a fault of any kind is that of this collection alone."""
    with about(config.collection):
        try:
            for line in run_collection(open_storage(config.workspace), config, train):
                say(*line.split(maxsplit=1))
        except Exception as error:
            return user_error(error) or PipelineError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return None


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of `table` with their numbers, without empty cells."""
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
    """Raise ConfigError where `config` cannot go with the jobs before it."""
    if config.collection in others:
        raise ConfigError(f"collection {config.collection}: named by an earlier row already")
    first = next(iter(others.values()), config)
    for name in OF_A_GROUP:
        if getattr(config.clustering, name) != getattr(first.clustering, name):
            raise ConfigError(f"clustering.{name}: is the same for all collections; set it outside the table")
