"""Which trials wait, which group of workers trains which, and what became of them.

One `TrialQueue` lives in an actor that all groups of a job ask. It decides nothing that could be lost: which trials
are done stands in the workspace, so a queue that dies with its job is filled again by the next one.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

from pipeline.clustering.training import Window
from pipeline.clustering.trial import Trial
from pipeline.config import ClusteringConfig
from pipeline.console import rated
from pipeline.errors import ClusteringError, PipelineError
from pipeline.paths import RunPaths
from pipeline.storage import Storage


@dataclass(frozen=True)
class Work:
    """A trial of a run, with all that a worker needs to train it."""

    storage: Storage
    paths: RunPaths
    config: ClusteringConfig
    trial: Trial
    shard_keys: list[str]
    decoded_bytes: int
    """Of all images of these shards."""
    earlier: str | None = None
    """Key of the trained model to start from, if any."""
    until: int | None = None
    """Iteration at which to pause, with the loss there in storage; None to train to the end."""

    @property
    def name(self) -> str:
        """Of the trial, in a job that may train several collections."""
        return f"{self.paths.collection}/{self.paths.run_id}/{self.trial.name}"

    @property
    def title(self) -> str:
        """For the console."""
        return f"{self.paths.collection} {self.trial.name}"


@dataclass(frozen=True)
class View:
    """The state of a queue, for whoever shows or waits."""

    lines: list[str]
    """What happened since the last question, for the console."""
    waiting: int
    running: dict[str, Window | None]
    """Of each trial that a group has: how far it is, where that is known."""
    ended: dict[str, PipelineError | None]
    """Of each trial that was done or given up since the last question: why it was given up, if so."""


@dataclass
class TrialQueue:
    """The trials of a job, those with the most prototypes first: what takes longest should not begin last.

    Trials that some workers lost come before all others. A call takes microseconds, however many trials wait.
    """

    _waiting: list[tuple[float, int, Work]] = field(default_factory=list)
    """A heap: rank, then the order in which trials came."""
    _came: int = 0
    _lost: list[Work] = field(default_factory=list)
    """A stack."""
    _held: dict[str, Work] = field(default_factory=dict)
    _served: set[str] = field(default_factory=set)
    _windows: dict[str, Window | None] = field(default_factory=dict)
    _troubles: dict[str, PipelineError] = field(default_factory=dict)
    _failures: Counter[str] = field(default_factory=Counter)
    _lines: list[str] = field(default_factory=list)
    _ended: dict[str, PipelineError | None] = field(default_factory=dict)

    def add(self, works: list[Work]) -> None:
        """More trials to train."""
        for work in works:
            heapq.heappush(self._waiting, (self.rank(work), self._came, work))
            self._came += 1

    def rank(self, work: Work) -> float:
        """Trials of a lower rank are taken earlier, those of one rank as they came."""
        return -work.trial.k

    def take(self, group: str) -> Work | None:
        """What `group` is to train now: what it had when its workers died, else the next trial; None if none waits."""
        self.release(group)
        if self._lost:
            work = self._lost.pop()
        elif self._waiting:
            work = heapq.heappop(self._waiting)[-1]
        else:
            return None
        self._held[group], self._windows[group] = work, None
        self._served.add(group)
        return work

    def release(self, group: str) -> bool:
        """The workers of `group` died, or ask for more without having ended what they had: it waits again, first.

        A trial that was lost more than `max_failures` times is given up. True where the group ever had a trial.
        """
        work = self._held.pop(group, None)
        self._windows.pop(group, None)
        trouble = self._troubles.pop(group, None)
        if work is None:
            return group in self._served
        self._failures[work.name] += 1
        lost = self._failures[work.name]
        if lost <= work.config.max_failures:
            why = f" ({trouble})" if trouble else ""
            self._lines.append(f"{work.title}: its workers died{why}, it goes on from its last checkpoint")
            self._lost.append(work)
        elif trouble:
            self._end(work, trouble)
        else:
            times = f"{lost} times" if lost > 1 else "once"
            self._end(work, ClusteringError(f"trial {work.trial.name}: its workers died {times}; see Ray's logs"))
        return True

    def begin(self, group: str, note: str) -> None:
        """The workers of `group` have what they need and train; `note` says from where on."""
        self._lines.append(f"{self._held[group].title}: {note}")

    def tell(self, group: str, window: Window) -> None:
        """How far the trial of `group` is."""
        if group in self._held:
            self._windows[group] = window

    def note(self, group: str, line: str) -> None:
        """Something about the trial of `group` for the console."""
        if group in self._held:
            self._lines.append(f"{self._held[group].title}: {line}")

    def trouble(self, group: str, error: PipelineError) -> None:
        """Why the workers of `group` are about to end; another attempt may do better."""
        self._troubles[group] = error

    def finish(self, group: str, loss: float, image_passes: int, seconds: float) -> None:
        """The trial of `group` is done, and its result is in the workspace."""
        work = self._held.pop(group)
        self._windows.pop(group, None)
        state = "done" if work.until is None else f"compared at iteration {work.until}"
        self._lines.append(f"{work.title}: {state}, loss {loss:.6g}; {rated(image_passes, 'image', seconds)}")
        self._end(work, None)

    def give_up(self, group: str, error: PipelineError) -> None:
        """The trial of `group` cannot succeed, however often it starts again; other trials can."""
        work = self._held.pop(group)
        self._windows.pop(group, None)
        self._lines.append(f"{work.title}: given up, {error}")
        self._end(work, error)

    def view(self) -> View:
        """What is new, and what stands where."""
        running = {work.name: self._windows.get(group) for group, work in self._held.items()}
        view = View(self._lines, len(self._waiting) + len(self._lost), running, self._ended)
        self._lines, self._ended = [], {}
        return view

    def _end(self, work: Work, error: PipelineError | None) -> None:
        self._ended[work.name] = error
