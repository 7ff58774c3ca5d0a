"""The queue of trials: it hands out trials to worker groups, and records how each of them ended.

A job has one `TrialQueue`, in an actor that all worker groups call. It holds no state that must survive: the workspace
is the source of truth about finished trials, so when a queue dies with its job, the next job fills a new one.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

from pipeline.clustering.trial import TrialProgress, TrialTask
from pipeline.console import rated
from pipeline.errors import ClusteringError, PipelineError


@dataclass(frozen=True)
class QueueUpdate:
    """The state of a queue, and what happened since the last update."""

    lines: list[str]
    """Events since the last update, for the console."""
    waiting: int
    """Number of trials that no group trains."""
    running: dict[str, TrialProgress | None]
    """Progress of each trial that a group trains; None while it is unknown."""
    ended: dict[str, PipelineError | None]
    """Trials that ended since the last update: None for those that are done, the error for those given up."""


@dataclass
class TrialQueue:
    """The trials of a job. Those with the most prototypes are taken first, since they take longest.

    Trials whose workers died are taken before all others. A call takes microseconds, however many trials wait.
    """

    _waiting: list[tuple[float, int, TrialTask]] = field(default_factory=list)
    """A heap, ordered by rank and then by arrival."""
    _arrivals: int = 0
    _lost: list[TrialTask] = field(default_factory=list)
    """A stack of trials whose workers died."""
    _held: dict[str, TrialTask] = field(default_factory=dict)
    """Trial of each group that trains one."""
    _served: set[str] = field(default_factory=set)
    """Groups that have taken at least one trial."""
    _progress: dict[str, TrialProgress | None] = field(default_factory=dict)
    _failure_reasons: dict[str, PipelineError] = field(default_factory=dict)
    _failures: Counter[str] = field(default_factory=Counter)
    _lines: list[str] = field(default_factory=list)
    _ended: dict[str, PipelineError | None] = field(default_factory=dict)

    def add(self, tasks: list[TrialTask]) -> None:
        """Add trials to train."""
        for task in tasks:
            heapq.heappush(self._waiting, (self.rank(task), self._arrivals, task))
            self._arrivals += 1

    def rank(self, task: TrialTask) -> float:
        """Return the rank of a trial: lower ranks are taken earlier, equal ranks in the order of arrival."""
        return -task.trial.k

    def take(self, group: str) -> TrialTask | None:
        """Return the next trial for `group`: a trial whose workers died, else the first waiting one, else None."""
        self.release(group)
        if self._lost:
            task = self._lost.pop()
        elif self._waiting:
            task = heapq.heappop(self._waiting)[-1]
        else:
            return None
        self._held[group], self._progress[group] = task, None
        self._served.add(group)
        return task

    def release(self, group: str) -> bool:
        """Return the trial of `group`, whose workers died or restarted, to the front of the queue.

        A trial whose workers died more than `max_failures` times is given up. Returns whether the group ever took a
        trial.
        """
        task = self._held.pop(group, None)
        self._progress.pop(group, None)
        reason = self._failure_reasons.pop(group, None)
        if task is None:
            return group in self._served
        self._failures[task.name] += 1
        failures = self._failures[task.name]
        if failures <= task.config.max_failures:
            why = f" ({reason})" if reason else ""
            self._lines.append(f"{task.title}: its workers died{why}; it continues from its last checkpoint")
            self._lost.append(task)
        elif reason:
            self._end(task, reason)
        else:
            times = f"{failures} times" if failures > 1 else "once"
            self._end(task, ClusteringError(f"trial {task.trial.name}: its workers died {times}; see Ray's logs"))
        return True

    def begin(self, group: str, origin: str) -> None:
        """Record that the workers of `group` have begun to train; `origin` describes the point where they begin."""
        self._lines.append(f"{self._held[group].title}: {origin}")

    def report(self, group: str, progress: TrialProgress) -> None:
        """Record the progress of the trial of `group`."""
        if group in self._held:
            self._progress[group] = progress

    def log(self, group: str, line: str) -> None:
        """Add a console line about the trial of `group`."""
        if group in self._held:
            self._lines.append(f"{self._held[group].title}: {line}")

    def report_failure(self, group: str, error: PipelineError) -> None:
        """Record the error with which the workers of `group` are about to end; another attempt may succeed."""
        self._failure_reasons[group] = error

    def finish(self, group: str, loss: float, image_passes: int, seconds: float) -> None:
        """Record that the trial of `group` is done, and that its result is in the workspace."""
        task = self._held.pop(group)
        self._progress.pop(group, None)
        state = "done" if task.until is None else f"compared at iteration {task.until}"
        self._lines.append(f"{task.title}: {state}, loss {loss:.6g}; {rated(image_passes, 'image', seconds)}")
        self._end(task, None)

    def give_up(self, group: str, error: PipelineError) -> None:
        """Record that the trial of `group` cannot succeed, even in another attempt."""
        task = self._held.pop(group)
        self._progress.pop(group, None)
        self._lines.append(f"{task.title}: given up, {error}")
        self._end(task, error)

    def update(self) -> QueueUpdate:
        """Return the current state, with the events since the last call."""
        running = {task.name: self._progress.get(group) for group, task in self._held.items()}
        update = QueueUpdate(self._lines, len(self._waiting) + len(self._lost), running, self._ended)
        self._lines, self._ended = [], {}
        return update

    def _end(self, task: TrialTask, error: PipelineError | None) -> None:
        self._ended[task.name] = error
