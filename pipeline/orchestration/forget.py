"""Takedown: remove images from the crawls and the reports of a collection, and keep them out of later crawls.

The list of removed images is published before anything is removed, and crawls and reports have no marker while they are
changed. An interrupted takedown therefore leaves nothing that could be mistaken for complete, and the same command
continues it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from pipeline.config import IMAGE_FORM_FIELDS, IngestConfig
from pipeline.console import counted, say
from pipeline.errors import ClusteringError, ConfigError, PipelineError, StorageError
from pipeline.ingest.accounting import RATES, account, describe_outcome
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
from pipeline.paths import AssignmentPaths, CrawlPaths, RunPaths, forgotten_list, runs_folder, takedown_marker
from pipeline.reporting.reported_runs import load_run
from pipeline.reporting.withdrawal import withdraw
from pipeline.shards import complete_crawls, read_crawl
from pipeline.storage import Storage, read_json, read_table, write_json


def forget(storage: Storage, collection: str, file: Path, tracked: str | None = None) -> list[str]:
    """Remove the images that `file` names from all crawls and reports of `collection`; return a summary as lines.

    Another call with the same file completes an interrupted takedown.

    Args:
        storage: workspace.
        collection: name of the collection.
        file: text file with an image id, the SHA-256 of a file or an address per line.
        tracked: MLflow server or database. Default: the locations where each run was tracked.

    Raises:
        ConfigError: a line of the file is invalid, or the collection does not exist; nothing has been changed.
        PipelineError: something could not be removed, or a report could not be made again.
    """
    entries = read_entries(file)
    shards = built_shards(storage, collection)
    if not shards and not any(storage.list(runs_folder(collection))):
        raise ConfigError(
            f"{storage.uri(collection)}: no crawl and no run from which images could be removed; check --collection "
            "and --workspace"
        )
    earlier = read_forgotten(storage, collection)
    names, found = find_all(storage, shards, names_from({*entries, *earlier.astype("U64")}))
    write_json(storage, takedown_marker(collection), {"since": datetime.now(UTC).isoformat(timespec="seconds")})
    write_forgotten(storage, collection, names)
    storage.delete_partial_writes(collection)
    matched = listed(earlier, entries)
    for paths, of_crawl in found.items():
        matched |= _remove_from_crawl(storage, paths, of_crawl, names)
    for name, line in entries.items():
        if name not in matched:
            say("forget", f"{file}, line {line}: matched nothing; later crawls will reject an image with this name")
    runs = _remove_from_runs(storage, collection, names, tracked)
    storage.delete(takedown_marker(collection))
    images = sum(part.images for of_crawl in found.values() for part in of_crawl.values())
    lines = [f"{'forgotten':<9} {counted(images, 'image')}; {storage.uri(forgotten_list(collection))} keeps them out"]
    if images or runs:
        lines.append(
            f"{'models':<9} those of earlier runs have learned from these images, and the prototype of a very small "
            "cluster can look like its photo; run their commands again to train new models"
        )
    return lines


def _remove_from_crawl(storage: Storage, paths: CrawlPaths, found: Mapping[int, Found], names: Names) -> set[str]:
    """Remove the matches `found` for `names` from one crawl; return the names that matched."""
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
    outcome = "the crawl is incomplete, its ingest job continues it"
    if storage.exists(paths.forgetting):
        outcome = _complete_again(storage, paths)
    further = counted(rows - images, "further record")
    say("forget", f"crawl {paths.crawl_id}: {counted(images, 'image')} removed, {further} cleared; {outcome}")
    return matched


def _delete_unfinished(storage: Storage, paths: CrawlPaths, found: Mapping[int, Found]) -> None:
    """Delete tars without rows: their content is unknown, and a job that continues the crawl builds them again."""
    tars = {key for key in storage.list(paths.shards) if key.endswith(".tar")}
    for key in tars - {paths.shard(index) for index in found}:
        storage.delete(key)


def _complete_again(storage: Storage, paths: CrawlPaths) -> str:
    """Write the marker of a changed crawl with its new totals; return a description of the totals."""
    before = read_crawl(storage, paths.forgetting)
    form = {name: getattr(before, name) for name in IMAGE_FORM_FIELDS}
    crawl = account(storage, paths, before.records, before.n_shards, IngestConfig.model_validate(form))
    rates = {name: before.statistics[name] for name in RATES if name in before.statistics}
    document = {**read_json(storage, paths.forgetting), **asdict(crawl), "statistics": crawl.statistics | rates}
    write_json(storage, paths.marker, document)
    storage.delete(paths.forgetting)
    return describe_outcome(crawl)


def _remove_from_runs(storage: Storage, collection: str, names: Names, tracked: str | None) -> int:
    """Make all reports that show images of `names` again, without these images; return the number of reports."""
    runs = {key.split("/")[2] for key in storage.list(runs_folder(collection))}
    withdrawn, failed = [], []
    digests = {crawl.digest for crawl in complete_crawls(storage, collection)}
    # All affected reports are withdrawn before the first one is made again, because making it may fail.
    for paths in (RunPaths(collection, run_id) for run_id in sorted(runs)):
        _delete_assignments(storage, paths, names)
        if not storage.exists(paths.marker) or _shows_any(storage, paths, names):
            _delete_training_images(storage, paths, digests)
            try:
                withdraw(storage, paths, tracked)
            except StorageError as error:
                failed.append(error)
                continue
        if storage.exists(paths.forgetting):
            withdrawn.append(paths)
    if failed:  # reports are made again only after the records of all earlier ones in MLflow are deleted
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
            f"again, or delete the folders of these runs in {storage.uri(runs_folder(collection))}"
        )
    return len(withdrawn)


def _delete_training_images(storage: Storage, paths: RunPaths, digests: set[str]) -> None:
    """Delete the pictures of training from the checkpoints of a run, and the checkpoints of its unfinished trials.

    The prototypes of an unfinished trial can still be photos. Such a trial is not continued once crawls have changed,
    so its checkpoints are deleted if the run learned from images that are not in `digests`, the digests of the present
    crawls.
    """
    # Imported here because it imports torch, which is not needed if the collection has no run.
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
            except ClusteringError:  # broken or of another version, so it cannot be used again
                storage.delete(key)


def _delete_assignments(storage: Storage, run: RunPaths, names: Names) -> None:
    """Delete the assignments of later crawls to the prototypes of `run` that show images of `names`."""
    # Imported here because it imports torch, which is not needed if the collection has no run.
    from pipeline.reporting.assignment.new_crawl import assignments_of, delete_assignment

    for paths in assignments_of(storage, run):
        if _shows_any(storage, paths, names):
            delete_assignment(storage, paths)
            say(
                "forget",
                f"run {run.run_id}: the assignment of crawl {paths.crawl_id} is deleted; jobs/assign_collection.py "
                "makes it again",
            )


def _shows_any(storage: Storage, paths: RunPaths | AssignmentPaths, names: Names) -> bool:
    """Whether the tables of a report or an assignment contain an image of `names`, or are missing."""
    if not storage.exists(paths.clusters):
        return True  # its other files may contain some
    columns = ["image_id", "source_uri", "source_url"]
    return bool(are_forgotten(read_table(storage, paths.clusters, columns), names).any())


def _report_again(storage: Storage, paths: RunPaths, tracked: str | None) -> None:
    """Make the withdrawn report of a run again, if any of its images are left."""
    # Imported here because it imports torch, which is not needed if the collection has no run.
    from pipeline.reporting.stage import report

    run = load_run(storage, paths.collection, paths.run_id, tracked, read_json(storage, paths.forgetting))
    if any(crawl.accepted for crawl in run.crawls):
        report(storage, run)
        say("forget", f"run {run.run_id}: reported again, with the same model")
    else:
        say("forget", f"run {run.run_id}: no image is left, so its report is deleted")
    storage.delete(paths.forgetting)
