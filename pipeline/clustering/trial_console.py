"""Console output about the trials of a job: a line for each event, and a status line for the running trials."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from pipeline.clustering.trial import TrialProgress
from pipeline.clustering.trial_queue import QueueUpdate
from pipeline.console import StatusLine, counted, duration, say

SILENCE_S = 90.0
"""Time without a running trial after which workers are assumed to be waiting for resources."""
SHOWN_TRIALS = 3
"""Maximum number of running trials that the status line names."""
ENCODER_COST = 100.0
"""Assumed ratio of the times of an iteration with an encoder and without one, until both are measured. The first stage
has no encoder."""


class StageCosts:
    """Measured seconds per iteration, for each level of a stage (`Stage.level`) that occurred in this job."""

    def __init__(self) -> None:
        self._seconds: defaultdict[int, float] = defaultdict(float)
        self._iterations: defaultdict[int, int] = defaultdict(int)

    def add(self, level: int, iterations: int, seconds: float) -> None:
        """Add a measurement: `iterations` of stages of this `level` took `seconds`."""
        self._seconds[level] += seconds
        self._iterations[level] += iterations

    def seconds_left(self, stages_left: Iterable[tuple[int, int]]) -> float | None:
        """Return the expected seconds of stages (level, iterations); None while nothing is measured."""
        if not any(self._iterations.values()):
            return None
        return sum(iterations * self._cost(level) for level, iterations in stages_left)

    def _cost(self, level: int) -> float:
        """Return seconds per iteration: measured, or else estimated from the most similar measured stage."""
        known = [other for other, iterations in self._iterations.items() if iterations]
        similar = [other for other in known if (other > 0) == (level > 0)]
        if similar:
            nearest = min(similar, key=lambda other: abs(other - level))
            return self._seconds[nearest] / self._iterations[nearest]
        factor = ENCODER_COST if level else 1 / ENCODER_COST
        return factor * sum(self._seconds[other] for other in known) / sum(self._iterations[other] for other in known)


class TrialConsole:
    """Shows the updates of a queue on the console.

    Args:
        poll_s: time between two updates.
    """

    def __init__(self, poll_s: float) -> None:
        self._poll_s = poll_s
        self._line: StatusLine | None = None
        self._costs = StageCosts()
        self._last: dict[str, TrialProgress] = {}
        self._silent_s = 0.0

    def show(self, update: QueueUpdate) -> None:
        """Print the events of `update`, and show the progress of the running trials."""
        waited_before = self._silent_s
        self._silent_s = 0.0 if update.running or not update.waiting else self._silent_s + self._poll_s
        if waited_before < SILENCE_S <= self._silent_s:
            say("cluster", "still waiting for workers: other jobs may hold the cluster's CPUs or GPUs")
        for line in update.lines:
            say("cluster", line)
        running = {name: progress for name, progress in update.running.items() if progress is not None}
        if any(self._measure(name, progress) for name, progress in running.items()):
            self._line = self._line or StatusLine("cluster")
            self._line.show(self._status(list(running.values()), update.waiting))

    def close(self) -> None:
        """Remove the status line."""
        if self._line is not None:
            self._line.close()

    def _measure(self, name: str, progress: TrialProgress) -> bool:
        """Record how long the latest iterations took; return whether there were any."""
        before = self._last.get(name)
        self._last[name] = progress
        if before is None or progress.iteration == before.iteration:
            return before is None
        if progress.iteration > before.iteration and progress.seconds > before.seconds:
            iterations, seconds = progress.iteration - before.iteration, progress.seconds - before.seconds
            self._costs.add(progress.level, iterations, seconds)
        return True

    def _status(self, running: list[TrialProgress], waiting: int) -> str:
        parts = [
            f"{progress.trial.name} iteration {progress.iteration:,}, loss {progress.loss:.6g}, "
            f"{'+'.join(progress.modules) or 'no module'}"
            for progress in running[:SHOWN_TRIALS]
        ]
        if len(running) > SHOWN_TRIALS:
            parts.append(f"{len(running) - SHOWN_TRIALS} more")
        if waiting:
            parts.append(f"{counted(waiting, 'trial')} waiting")
        left = [self._costs.seconds_left(progress.stages_left) for progress in running]
        known = [seconds for seconds in left if seconds is not None]
        if known:
            parts.append(f"at most {duration(max(known))} left of {'this' if len(running) == 1 else 'these'}")
        return "; ".join(parts)
