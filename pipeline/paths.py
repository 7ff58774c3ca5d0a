"""Where everything lies in a workspace: the only place that spells a path.

::

    <workspace>/<collection>/
      forgotten.parquet             what stays out of all crawls
      crawls/<crawl_id>/            plan.parquet, shards/, repeats.parquet, crawl.json (last: complete)
      runs/<run_id>/                config.yaml, identity.json, trials/, tables, pictures, page, run.json (last)
        assignments/<crawl_id>/     tables and a picture of a crawl that was assigned later, assignment.json (last)
    <workspace>/mlflow.db, mlartifacts/   the embedded tracking default
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class CrawlPaths:
    """Keys of one crawl of a collection."""

    collection: str
    crawl_id: str

    @classmethod
    def of(cls, key: str) -> Self:
        """The crawl to which the file `key` belongs."""
        collection, _, crawl_id = key.split("/")[:3]
        return cls(collection, crawl_id)

    @property
    def folder(self) -> str:
        return f"{self.collection}/crawls/{self.crawl_id}"

    @property
    def plan(self) -> str:
        """The records in a fixed order; row group i holds the records of shard i."""
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
        """What was decided about repeats, once all shards are built."""
        return f"{self.folder}/repeats.parquet"

    def rows(self, index: int) -> str:
        """One row per record of shard `index`; written after the tar, so its presence means the shard is done."""
        return f"{self.shards}/shard-{index:06d}.parquet"

    def shard_of_rows(self, key: str) -> int | None:
        """The shard whose rows are the file `key`; None where it holds something else."""
        found = re.fullmatch(r"shard-([0-9]+)\.parquet", key.removeprefix(f"{self.shards}/"))
        return None if found is None else int(found[1])

    @property
    def marker(self) -> str:
        return f"{self.folder}/crawl.json"

    @property
    def forgetting(self) -> str:
        """What `marker` held before images began to be removed; there until it is written again."""
        return f"{self.folder}/forgetting.json"


@dataclass(frozen=True)
class AssignmentPaths:
    """Keys of what a run says of a crawl that it need not have learned from."""

    collection: str
    run_id: str
    crawl_id: str

    @property
    def folder(self) -> str:
        return f"{RunPaths(self.collection, self.run_id).assignments}/{self.crawl_id}"

    @property
    def clusters(self) -> str:
        return f"{self.folder}/clusters.parquet"

    @property
    def spreadsheet(self) -> str:
        """The clusters again, for people."""
        return f"{self.folder}/clusters.csv"

    @property
    def changes(self) -> str:
        """Every cluster here and in the run."""
        return f"{self.folder}/changes.csv"

    @property
    def picture(self) -> str:
        """The prototypes with both of their shares."""
        return f"{self.folder}/changes.png"

    @property
    def marker(self) -> str:
        return f"{self.folder}/assignment.json"


@dataclass(frozen=True)
class RunPaths:
    """Keys of one clustering run of a collection."""

    collection: str
    run_id: str

    @property
    def folder(self) -> str:
        return f"{self.collection}/runs/{self.run_id}"

    @property
    def config(self) -> str:
        return f"{self.folder}/config.yaml"

    @property
    def identity(self) -> str:
        """What the run computes, and on which images: two commands with the same identity are the same run."""
        return f"{self.folder}/identity.json"

    @property
    def tracked(self) -> str:
        """Where the run was ever recorded; written before anything is."""
        return f"{self.folder}/tracked.json"

    @property
    def trials(self) -> str:
        """Folder of all trials."""
        return f"{self.folder}/trials"

    def trial(self, name: str) -> str:
        """Folder of the trial `name`, such as ``k=20-seed=0``."""
        return f"{self.trials}/{name}"

    def checkpoint(self, name: str) -> str:
        return f"{self.trial(name)}/checkpoint.pt"

    def best(self, name: str) -> str:
        """Model of the lowest loss, where that of the checkpoint has a higher one."""
        return f"{self.trial(name)}/best.pt"

    def trial_marker(self, name: str) -> str:
        """Result of the trial, written when it is done."""
        return f"{self.trial(name)}/trial.json"

    def rung(self, name: str, iteration: int) -> str:
        """Loss of the trial at an iteration where seeds were compared."""
        return f"{self.trial(name)}/rung-{iteration}.json"

    @property
    def prototypes(self) -> str:
        return f"{self.folder}/prototypes.parquet"

    @property
    def clusters(self) -> str:
        return f"{self.folder}/clusters.parquet"

    @property
    def spreadsheet(self) -> str:
        """The clusters again, for people."""
        return f"{self.folder}/clusters.csv"

    @property
    def mosaic(self) -> str:
        return f"{self.folder}/mosaic.png"

    @property
    def timelapse(self) -> str:
        """Animation of all prototypes over training."""
        return f"{self.folder}/training.webp"

    @property
    def page(self) -> str:
        """Everything that a person wants to know of the run, as one file."""
        return f"{self.folder}/report.html"

    @property
    def pictures(self) -> str:
        """Folder of the clusters' pictures."""
        return f"{self.folder}/clusters"

    def strip(self, cluster: int) -> str:
        """Picture of one cluster: its prototype and how it relates to its nearest images."""
        return f"{self.pictures}/cluster-{cluster:03d}.png"

    def motion(self, cluster: int) -> str:
        """Animation of one cluster: its prototype moves onto its nearest images."""
        return f"{self.pictures}/cluster-{cluster:03d}.webp"

    @property
    def assignments(self) -> str:
        """Folder of what was assigned later."""
        return f"{self.folder}/assignments"

    def assignment(self, crawl_id: str) -> AssignmentPaths:
        return AssignmentPaths(self.collection, self.run_id, crawl_id)

    @property
    def marker(self) -> str:
        return f"{self.folder}/run.json"

    @property
    def forgetting(self) -> str:
        """What `marker` held before the report was withdrawn; there until it is made again."""
        return f"{self.folder}/forgetting.json"


def forgetting_of(collection: str) -> str:
    """There while images of a collection are being forgotten."""
    return f"{collection}/forgetting.json"


def forgotten_of(collection: str) -> str:
    """What stays out of all crawls of a collection."""
    return f"{collection}/forgotten.parquet"


def crawls_of(collection: str) -> str:
    """Folder of all crawls of a collection."""
    return f"{collection}/crawls"


def runs_of(collection: str) -> str:
    """Folder of all runs of a collection."""
    return f"{collection}/runs"
