"""The layout of a workspace: this module defines the keys of all files in storage.

::

    <workspace>/<collection>/
      forgotten.parquet             list of removed images, which stay out of all crawls
      forgetting.json               exists while a takedown is running or interrupted
      crawls/<crawl_id>/            plan.parquet, shards/, repeats.parquet, crawl.json;
                                    during a takedown, forgetting.json
      runs/<run_id>/                config.yaml, identity.json, tracked.json, trials/, tables, pictures, page, run.json;
                                    during a takedown, forgetting.json
        assignments/<crawl_id>/     tables and a picture of a crawl that was assigned later, assignment.json
    <workspace>/mlflow.db, mlartifacts/   the default MLflow database and its artifacts

A marker (the rows of a shard, crawl.json, trial.json, run.json, assignment.json) is written last: without it, the unit
of work that it describes is not complete. During a takedown, the forgetting.json of a crawl or run holds the content of
its marker, which is deleted while images are removed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class CrawlPaths:
    """Keys of the files of one crawl of a collection."""

    collection: str
    crawl_id: str

    @classmethod
    def of(cls, key: str) -> Self:
        """Return the paths of the crawl to which the file `key` belongs."""
        collection, _, crawl_id = key.split("/")[:3]
        return cls(collection, crawl_id)

    @property
    def folder(self) -> str:
        """Folder of the crawl."""
        return f"{self.collection}/crawls/{self.crawl_id}"

    @property
    def plan(self) -> str:
        """Table of the records in a fixed order; a row group holds one or more whole shards (see ingest/plan.py)."""
        return f"{self.folder}/plan.parquet"

    @property
    def shards(self) -> str:
        """Folder of all shards."""
        return f"{self.folder}/shards"

    def shard(self, index: int) -> str:
        """WebDataset tar of the accepted images of shard `index`."""
        return f"{self.shards}/shard-{index:06d}.tar"

    @property
    def repeats(self) -> str:
        """Table of the duplicates, written when all shards are built."""
        return f"{self.folder}/repeats.parquet"

    def rows(self, index: int) -> str:
        """Table with one row per record of shard `index`; written after the tar, so it marks the shard as done."""
        return f"{self.shards}/shard-{index:06d}.parquet"

    def shard_of_rows(self, key: str) -> int | None:
        """Index of the shard whose rows are the file `key`; None if `key` is another file."""
        found = re.fullmatch(r"shard-([0-9]+)\.parquet", key.removeprefix(f"{self.shards}/"))
        return None if found is None else int(found[1])

    @property
    def marker(self) -> str:
        """Marker of the complete crawl."""
        return f"{self.folder}/crawl.json"

    @property
    def forgetting(self) -> str:
        """Copy of `marker` that a takedown makes before it removes images; deleted when `marker` is written again."""
        return f"{self.folder}/forgetting.json"


@dataclass(frozen=True)
class AssignmentPaths:
    """Keys of the files of an assignment: a crawl assigned to the prototypes of a run, without training on it."""

    collection: str
    run_id: str
    crawl_id: str

    @property
    def folder(self) -> str:
        """Folder of the assignment."""
        return f"{RunPaths(self.collection, self.run_id).assignments}/{self.crawl_id}"

    @property
    def clusters(self) -> str:
        """Table with one row per assigned image."""
        return f"{self.folder}/clusters.parquet"

    @property
    def spreadsheet(self) -> str:
        """The table `clusters` as CSV, for spreadsheets."""
        return f"{self.folder}/clusters.csv"

    @property
    def changes(self) -> str:
        """Table that compares each cluster in the crawl with the cluster in the run, as CSV."""
        return f"{self.folder}/changes.csv"

    @property
    def picture(self) -> str:
        """Picture of the prototypes with their shares in the crawl and in the run."""
        return f"{self.folder}/changes.png"

    @property
    def marker(self) -> str:
        """Marker of the complete assignment."""
        return f"{self.folder}/assignment.json"


@dataclass(frozen=True)
class RunPaths:
    """Keys of the files of one clustering run of a collection."""

    collection: str
    run_id: str

    @property
    def folder(self) -> str:
        """Folder of the run."""
        return f"{self.collection}/runs/{self.run_id}"

    @property
    def config(self) -> str:
        """Configuration of the run."""
        return f"{self.folder}/config.yaml"

    @property
    def identity(self) -> str:
        """Settings and digests of the images that identify the run; jobs with the same identity continue one run."""
        return f"{self.folder}/identity.json"

    @property
    def tracked(self) -> str:
        """List of all MLflow servers and databases in which the run was recorded; written before each recording."""
        return f"{self.folder}/tracked.json"

    @property
    def trials(self) -> str:
        """Folder of all trials."""
        return f"{self.folder}/trials"

    def trial(self, name: str) -> str:
        """Folder of the trial `name`, such as ``k=20-seed=0``."""
        return f"{self.trials}/{name}"

    def checkpoint(self, name: str) -> str:
        """Last checkpoint of the trial `name`."""
        return f"{self.trial(name)}/checkpoint.pt"

    def best(self, name: str) -> str:
        """Model of the trial `name` at the checkpoint whose window with all modules had the lowest mean loss.

        It is deleted at the end of the trial, unless the mean loss of the last model over all images is higher.
        """
        return f"{self.trial(name)}/best.pt"

    def trial_marker(self, name: str) -> str:
        """Result of the trial `name`, written when the trial is done."""
        return f"{self.trial(name)}/trial.json"

    def rung(self, name: str, iteration: int) -> str:
        """Loss of the trial `name` at an iteration at which successive halving compares seeds."""
        return f"{self.trial(name)}/rung-{iteration}.json"

    @property
    def prototypes(self) -> str:
        """Table with one row per prototype."""
        return f"{self.folder}/prototypes.parquet"

    @property
    def clusters(self) -> str:
        """Table with one row per assigned image."""
        return f"{self.folder}/clusters.parquet"

    @property
    def spreadsheet(self) -> str:
        """The table `clusters` as CSV, for spreadsheets."""
        return f"{self.folder}/clusters.csv"

    @property
    def mosaic(self) -> str:
        """Picture of all prototypes."""
        return f"{self.folder}/mosaic.png"

    @property
    def timelapse(self) -> str:
        """Animation of all prototypes during training."""
        return f"{self.folder}/training.webp"

    @property
    def page(self) -> str:
        """Report of the run, as one self-contained HTML page."""
        return f"{self.folder}/report.html"

    @property
    def pictures(self) -> str:
        """Folder of the pictures and animations of the clusters."""
        return f"{self.folder}/clusters"

    def strip(self, cluster: int) -> str:
        """Picture of one cluster: its prototype and the nearest images."""
        return f"{self.pictures}/cluster-{cluster:03d}.png"

    def motion(self, cluster: int) -> str:
        """Animation of one cluster: the prototype moves onto the nearest images."""
        return f"{self.pictures}/cluster-{cluster:03d}.webp"

    @property
    def assignments(self) -> str:
        """Folder of all assignments of later crawls."""
        return f"{self.folder}/assignments"

    def assignment(self, crawl_id: str) -> AssignmentPaths:
        """Paths of the assignment of the crawl `crawl_id`."""
        return AssignmentPaths(self.collection, self.run_id, crawl_id)

    @property
    def marker(self) -> str:
        """Marker of the reported run."""
        return f"{self.folder}/run.json"

    @property
    def forgetting(self) -> str:
        """Copy of `marker` that a takedown makes before it withdraws the report; deleted when it is made again."""
        return f"{self.folder}/forgetting.json"


def takedown_marker(collection: str) -> str:
    """File that exists while a takedown (``--forget``) of the collection is running or interrupted."""
    return f"{collection}/forgetting.json"


def forgotten_list(collection: str) -> str:
    """Table of the removed images, which stay out of all crawls of the collection."""
    return f"{collection}/forgotten.parquet"


def crawls_folder(collection: str) -> str:
    """Folder of all crawls of the collection."""
    return f"{collection}/crawls"


def runs_folder(collection: str) -> str:
    """Folder of all runs of the collection."""
    return f"{collection}/runs"
