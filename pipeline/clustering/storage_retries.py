"""Retries of reads and writes: a temporary failure of the storage must not end a training run of hours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from pipeline.console import say
from pipeline.errors import StorageError, UnavailableError

Result = TypeVar("Result")

PATIENCE_S = 600.0
"""Time for which a read or a write is retried."""
LONGEST_WAIT_S = 15.0
"""Longest pause between two attempts."""


def log_on_console(line: str) -> None:
    """Print `line` on the console of this process."""
    say("storage", line)


def write_with_retries(write: Callable[[], None], what: str, log: Callable[[str], None]) -> None:
    """Call `write` until the storage accepts it; after `PATIENCE_S` the StorageError of the last attempt is raised.

    Args:
        write: function that writes to the storage.
        what: name of what is written, for the messages.
        log: called with a line when writing first fails, and with another one when it succeeds.
    """
    _retry(write, StorageError, what, "written", log)


def read_with_retries(read: Callable[[], Result], what: str, log: Callable[[str], None] = log_on_console) -> Result:
    """Call `read` until the storage answers; after `PATIENCE_S` the UnavailableError of the last attempt is raised.

    Other errors, such as that of a missing or broken file, are raised at once.

    Args:
        read: function that reads from the storage.
        what: name of what is read, for the messages.
        log: called with a line when reading first fails, and with another one when it succeeds.
    """
    return _retry(read, UnavailableError, what, "read", log)


def _retry(
    call: Callable[[], Result], temporary: type[Exception], what: str, done: str, log: Callable[[str], None]
) -> Result:
    def log_failure(state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            why, minutes = state.outcome.exception(), PATIENCE_S / 60
            log(f"{what} is not {done}: {why}; trying again for {minutes:.0f} minutes")

    retrying = Retrying(
        retry=retry_if_exception_type(temporary),
        wait=wait_exponential(max=LONGEST_WAIT_S),
        stop=stop_after_delay(PATIENCE_S),
        before_sleep=log_failure,
        reraise=True,
    )
    result: Result = retrying(call)
    if (attempts := retrying.statistics["attempt_number"]) > 1:
        log(f"{what} is {done}, at attempt {attempts}")
    return result
