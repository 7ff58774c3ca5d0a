"""Progress of a stage on the console: done/total, rate, time left.

A terminal gets one line that moves; a log (``ray job logs``, a file) gets a new line every few seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Self

from tqdm import tqdm

LOG_INTERVAL_S = 5.0


_subject: ContextVar[str] = ContextVar("subject", default="")


@contextmanager
def about(subject: str) -> Iterator[None]:
    """Within it, lines name `subject` and there are no progress lines: many subjects are worked on at once."""
    token = _subject.set(subject)
    try:
        yield
    finally:
        _subject.reset(token)


class _Lines:
    """A text stream for tqdm that ends each redraw with a newline instead of returning to the line's start."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, flush=True)

    def flush(self) -> None:
        sys.stdout.flush()


class Progress:
    """Counts the units of one stage; use it as a context manager.

    Args:
        stage: name shown in front, such as ``ingest``.
        total: number of units.
        unit: what is counted, such as ``img``.
        done: units that were done before this job started; they do not count for the rate.
    """

    def __init__(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        terminal = sys.stdout.isatty()
        self._bar = tqdm(
            desc=f"{stage:<9}",
            total=total,
            initial=done,
            unit=unit,
            file=sys.stdout if terminal else _Lines(),
            mininterval=0.1 if terminal else LOG_INTERVAL_S,
            maxinterval=0.1 if terminal else LOG_INTERVAL_S,
            miniters=1,
            disable=bool(_subject.get()),
            dynamic_ncols=terminal,
            bar_format="{desc} {n_fmt}/{total_fmt} {unit}, {rate_fmt}, {remaining} left{postfix}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Draw the last state."""
        self._bar.close()

    def set_total(self, total: int) -> None:
        """Correct the number of units."""
        self._bar.total = total

    def advance(self, units: int, note: str = "") -> None:
        """Count `units` more as done; `note` is shown at the end of the line."""
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(units)


def say(stage: str, message: str) -> None:
    """One line about `stage` on the console, in line with its progress."""
    subject = f"{_subject.get()}: " if _subject.get() else ""
    print(f"{stage:<9} {subject}{message}", flush=True)


class Laps:
    """Seconds that the parts of a job take, which follow each other from now on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def end(self, part: str) -> float:
        """`part` ends and the next one begins; the seconds that it took."""
        now = time.monotonic()
        self.seconds[part], self._since = round(now - self._since, 3), now
        return self.seconds[part]


def rated(n: int, noun: str, seconds: float) -> str:
    """Such as 1,200 images in 4.0 s, 300 images/s."""
    rate = n / max(seconds, 1e-3)
    return f"{counted(n, noun)} in {seconds:.1f} s, {rate:{',.0f' if rate >= 100 else '.3g'}} {noun}s/s"


def counted(n: int, noun: str) -> str:
    """Such as 1 image, or 1,200 images."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
