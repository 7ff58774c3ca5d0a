"""Console output of a job: lines about its stages, and their progress.

A terminal shows one status line below the other lines, which is updated in place. A log (``ray job logs``, a file)
receives one line when a stage begins, one when it ends, and one every ten minutes in between.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from pipeline.masking import mask

LOG_INTERVAL_S = 600.0
"""Minimum time in seconds between two progress lines of one stage in a log."""

_JOINERS = "\u200c\u200d"
"""Characters without a width that join letters and emoji."""

_subject: ContextVar[str] = ContextVar("subject", default="")


@contextmanager
def about(subject: str) -> Iterator[None]:
    """Context in which all lines begin with `subject` and no status line is shown.

    It is used where several collections are processed at once.
    """
    token = _subject.set(subject)
    try:
        yield
    finally:
        _subject.reset(token)


def printable(text: str) -> str:
    """Return `text` on one line, without passwords, and with backslash escapes for control characters.

    Names in a crawl could otherwise change the terminal, or imitate other lines.
    """
    visible = (c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode() for c in mask(text))
    return "".join(visible)


def say(stage: str, message: str) -> None:
    """Print one line about `stage`, above the status line if there is one."""
    subject = f"{_subject.get()}: " if _subject.get() else ""
    tqdm.write(f"{stage:<9} {printable(subject + message)}", file=sys.stdout)
    sys.stdout.flush()


class StatusLine:
    """Status of a stage: updated in place on a terminal, printed every `LOG_INTERVAL_S` in a log."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._bar: tqdm[Any] | None = None
        if sys.stdout.isatty() and not _subject.get():
            self._bar = tqdm(file=sys.stdout, bar_format="{desc}", leave=False, dynamic_ncols=True)
        self._logged_at = time.monotonic()

    def show(self, state: str) -> None:
        """Show `state` in place of the previous state."""
        if self._bar is not None:
            self._bar.set_description_str(f"{self._stage:<9} {state}")
        elif not _subject.get() and time.monotonic() - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = time.monotonic()
            say(self._stage, state)

    def close(self) -> None:
        """Remove the status line."""
        if self._bar is not None:
            self._bar.close()


class Progress:
    """Context manager that reports the progress of one stage, counted in units. It prints nothing if `total` is 0.

    Args:
        stage: name of the stage, printed at the beginning of each line, such as ``ingest``.
        total: number of units.
        noun: name of a unit in the singular, such as ``image``.
        done: number of units that were done before this job started; they are not part of the rate.
    """

    def __init__(self, stage: str, total: int, noun: str, done: int = 0) -> None:
        self._stage, self._total, self._noun = stage, total, noun
        self._before = self._done = done
        self._note = ""

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._line = StatusLine(self._stage)
        if self._total and not sys.stdout.isatty() and not _subject.get():
            already_done = f", {self._before:,} of them done already" if self._before else ""
            say(self._stage, f"begins: {counted(self._total, self._noun)}{already_done}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._line.close()
        if error is None and self._total:
            note = f"; {self._note}" if self._note else ""
            seconds = time.monotonic() - self._started
            say(self._stage, rated(self._done - self._before, self._noun, seconds) + note)

    def advance(self, units: int, note: str = "") -> None:
        """Count `units` more units as done; `note` is shown at the end of the line, also of the last one."""
        self._done += units
        self._note = note or self._note
        seconds = time.monotonic() - self._started
        parts = [f"{self._done:,} of {counted(self._total, self._noun)}"]
        if self._done > self._before and seconds > 0:
            per_unit = seconds / (self._done - self._before)
            parts += [_rate(1 / per_unit, self._noun), f"{duration((self._total - self._done) * per_unit)} left"]
        self._line.show(", ".join([*parts, self._note] if self._note else parts))


class Laps:
    """Stopwatch for consecutive parts of a job; it starts when it is created."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Duration of each finished part in seconds, by name."""
        self._since = time.monotonic()

    def end(self, part: str) -> float:
        """End `part`, begin the next one, and return the duration of `part` in seconds."""
        now = time.monotonic()
        self.seconds[part], self._since = round(now - self._since, 3), now
        return self.seconds[part]


def rated(n: int, noun: str, seconds: float) -> str:
    """Return a count with its duration and its rate, such as "1,200 images in 4.0 s, 300 images/s"."""
    if not n:
        return counted(n, noun)
    return f"{counted(n, noun)} in {duration(seconds)}, {_rate(n / max(seconds, 1e-3), noun)}"


def counted(n: int, noun: str) -> str:
    """Return a count with its noun, such as "1 image" or "1,200 images"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return `seconds` in readable units, such as "4.0 s", "1 min 15 s" or "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s" if rest_s else f"{minutes} min"
    hours, rest_min = divmod(minutes, 60)
    return f"{hours} h {rest_min} min" if rest_min else f"{hours} h"


def _rate(per_second: float, noun: str) -> str:
    """Return the number of units per second, or the time per unit if it is longer than a second."""
    if per_second < 1:
        return f"{duration(1 / per_second)} per {noun}"
    return f"{per_second:{',.0f' if per_second >= 100 else '.3g'}} {noun}s/s"
