"""Images that somebody asked to be forgotten leave the crawls and the reports of a collection, and stay out.

The list of what is forgotten is published before anything is removed, and what is being changed has no marker, so an
interrupted job leaves nothing that passes for complete, and the same command goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from pipeline.config import OF_THE_FORM, IngestConfig
from pipeline.console import counted, say
from pipeline.errors import ClusteringError, ConfigError, PipelineError, StorageError
from pipeline.ingest.accounting import RATES, account, in_words
from pipeline.ingest.forget.names import (
    Names,
    are_forgotten,
    listed,
    names_from,
    read_entries,
    read_forgotten,
    write_forgotten,
)
from pipeline.ingest.forget.removal import Found, built_shards, find_all, publish_plan, remove
from pipeline.paths import AssignmentPaths, CrawlPaths, RunPaths, forgetting_of, forgotten_of, runs_of
from pipeline.reporting.run import past_run
from pipeline.reporting.withdrawal import withdraw
from pipeline.shards import complete_crawls, read_crawl
from pipeline.storage import Storage, read_json, read_table, write_json


def forget(storage: Storage, collection: str, file: Path, tracked: str | None = None) -> list[str]:
    """Remove the images that `file` names from all of `collection`; what the user should know in the end, as lines.

    The same file again does what is left.

    Args:
        storage: workspace.
        collection: to forget them.
        file: text with an image id, the SHA-256 of a file or an address per line.
        tracked: MLflow server or database. Default: where each run was tracked.

    Raises:
        ConfigError: the file names something else, or there is no such collection; nothing is changed then.
        PipelineError: something could not be removed, or not be reported again.
    """
    entries = read_entries(file)
    shards = built_shards(storage, collection)
    if not shards and not any(storage.list(runs_of(collection))):
        raise ConfigError(f"{storage.uri(collection)}: no crawl and no run to forget anything of")
    earlier = read_forgotten(storage, collection)
    names, found = find_all(storage, shards, names_from({*entries, *earlier.astype("U64")}))
    write_json(storage, forgetting_of(collection), {"since": datetime.now(UTC).isoformat(timespec="seconds")})
    write_forgotten(storage, collection, names)
    storage.sweep(collection)
    matched = listed(earlier, entries)
    for paths, of_crawl in found.items():
        matched |= _forget_in_crawl(storage, paths, of_crawl, names)
    for name, line in entries.items():
        if name not in matched:
            say("forget", f"{file}, line {line}: matched nothing; it stays out of later crawls")
    runs = _forget_in_runs(storage, collection, names, tracked)
    storage.delete(forgetting_of(collection))
    images = sum(part.images for of_crawl in found.values() for part in of_crawl.values())
    lines = [f"{'forgotten':<9} {counted(images, 'image')}; {storage.uri(forgotten_of(collection))} keeps them out"]
    if images or runs:
        lines.append(
            f"{'models':<9} those of earlier runs have learned from them, and the prototype of a tiny cluster can look "
            "like its photo; the next run of the same command trains anew"
        )
    return lines


def _forget_in_crawl(storage: Storage, paths: CrawlPaths, found: Mapping[int, Found], names: Names) -> set[str]:
    """Remove what was `found` of `names`; those of them that matched."""
    rows, images = (sum(getattr(part, name) for part in found.values()) for name in ("rows", "images"))
    matched = {name for part in found.values() for name in part.matched}
    if storage.exists(paths.marker):
        if not rows:
            storage.delete(paths.forgetting)
            return matched
        storage.write_bytes(paths.forgetting, storage.read_bytes(paths.marker))
        storage.delete(paths.marker)
    else:
        _delete_unfinished(storage, paths, found)
    remove(storage, paths, found, names)
    if storage.exists(paths.plan):
        plan = pa.BufferReader(storage.read_bytes(paths.plan))
        matched |= listed(names, publish_plan(storage, paths, plan, found, names))
    outcome = "it is not complete, the job that ingests it goes on with it"
    if storage.exists(paths.forgetting):
        outcome = _close(storage, paths)
    further = counted(rows - images, "further record")
    say("forget", f"crawl {paths.crawl_id}: {counted(images, 'image')} removed, {further} cleared; {outcome}")
    return matched


def _delete_unfinished(storage: Storage, paths: CrawlPaths, found: Mapping[int, Found]) -> None:
    """Delete tars without rows: nothing tells what is in them, and whoever continues the crawl builds them again."""
    tars = {key for key in storage.list(paths.shards) if key.endswith(".tar")}
    for key in tars - {paths.shard(index) for index in found}:
        storage.delete(key)


def _close(storage: Storage, paths: CrawlPaths) -> str:
    """Complete a crawl that was changed, with its new totals; the totals in words."""
    before = read_crawl(storage, paths.forgetting)
    form = {name: getattr(before, name) for name in OF_THE_FORM}
    crawl = account(storage, paths, before.records, before.n_shards, IngestConfig.model_validate(form))
    speed = {name: before.statistics[name] for name in RATES if name in before.statistics}
    document = {**read_json(storage, paths.forgetting), **asdict(crawl), "statistics": crawl.statistics | speed}
    write_json(storage, paths.marker, document)
    storage.delete(paths.forgetting)
    return in_words(crawl)


def _forget_in_runs(storage: Storage, collection: str, names: Names, tracked: str | None) -> int:
    """Make the reports again that show something of `names`, without it; how many there were."""
    runs = {key.split("/")[2] for key in storage.list(runs_of(collection))}
    withdrawn, failed = [], []
    digests = {crawl.digest for crawl in complete_crawls(storage, collection)}
    # All of them are withdrawn before the first is made again, which may fail.
    for paths in (RunPaths(collection, run_id) for run_id in sorted(runs)):
        _forget_assignments(storage, paths, names)
        if not storage.exists(paths.marker) or _shows(storage, paths, names):
            _forget_training(storage, paths, digests)
            try:
                withdraw(storage, paths, tracked)
            except StorageError as error:
                failed.append(error)
                continue
        if storage.exists(paths.forgetting):
            withdrawn.append(paths)
    if failed:  # the reports are made again once MLflow has nothing of the earlier ones
        raise StorageError("; ".join(map(str, failed)))
    broken = []
    for paths in withdrawn:
        try:
            _report_again(storage, paths, tracked)
        except PipelineError as error:
            broken.append(paths.run_id)
            say("forget", f"run {paths.run_id}: the report is deleted and cannot be made again: {error}")
    if broken:
        raise PipelineError(
            f"{counted(len(broken), 'report')} could not be made again ({', '.join(broken)}); run the same command "
            f"again, or delete the folders of these runs in {storage.uri(runs_of(collection))}"
        )
    return len(withdrawn)


def _forget_training(storage: Storage, paths: RunPaths, digests: set[str]) -> None:
    """Delete the pictures that the checkpoints of a run have of its training; `digests` are those of all crawls now.

    What is not trained to the end can be photos itself. Its run is never continued once crawls have changed.
    """
    # It imports torch, which crawls alone do not need.
    from pipeline.clustering.checkpoint import delete_snapshots

    learned = read_json(storage, paths.identity)["images"] if storage.exists(paths.identity) else []
    changed = not set(learned) <= digests
    for key in list(storage.list(paths.trials)):
        done = storage.exists(paths.trial_marker(key.split("/")[-2]))
        if key.endswith(".pt") and changed and not done:
            storage.delete(key)
        elif key.endswith("/checkpoint.pt"):
            try:
                delete_snapshots(storage, key)
            except ClusteringError:  # of another version, or broken: nothing can be made of it again
                storage.delete(key)


def _forget_assignments(storage: Storage, run: RunPaths, names: Names) -> None:
    """Delete what was assigned to the prototypes of `run` and shows something of `names`."""
    # It imports torch, which crawls alone do not need.
    from pipeline.reporting.assignment.new_crawl import assignments_of, delete_assignment

    for paths in assignments_of(storage, run):
        if _shows(storage, paths, names):
            delete_assignment(storage, paths)
            say(
                "forget",
                f"run {run.run_id}: the assignment of crawl {paths.crawl_id} is deleted; jobs/assign_collection.py "
                "makes it again",
            )


def _shows(storage: Storage, paths: RunPaths | AssignmentPaths, names: Names) -> bool:
    """Whether the tables of a report or an assignment have an image of `names`."""
    if not storage.exists(paths.clusters):
        return True  # its other files may have some
    columns = ["image_id", "source_uri", "source_url"]
    return bool(are_forgotten(read_table(storage, paths.clusters, columns), names).any())


def _report_again(storage: Storage, paths: RunPaths, tracked: str | None) -> None:
    """Report a run whose report was withdrawn, if any of its images are left."""
    # It imports torch, which crawls alone do not need.
    from pipeline.reporting.stage import report

    run = past_run(storage, paths.collection, paths.run_id, tracked, read_json(storage, paths.forgetting))
    if any(crawl.accepted for crawl in run.crawls):
        report(storage, run.config, run.run_id, run.crawls, run.results, run.selected, run.reason)
        say("forget", f"run {run.run_id}: reported again, with the same model")
    else:
        say("forget", f"run {run.run_id}: has no image left, its report is deleted")
    storage.delete(paths.forgetting)
