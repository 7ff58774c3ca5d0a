"""Storage that fails for a while must not cost a training run of hours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from pipeline.console import say
from pipeline.errors import StorageError, UnavailableError

Result = TypeVar("Result")

PATIENCE_S = 600.0
"""How long a read or write is tried again."""
LONGEST_WAIT_S = 15.0
"""Between two attempts."""


def write_patiently(write: Callable[[], None], what: str, note: Callable[[str], None]) -> None:
    """Call `write` until the storage takes it, or for `PATIENCE_S`; then the StorageError of the last attempt.

    Args:
        what: is written, for the messages.
        note: is told when the trouble begins and when it is over.
    """
    _patiently(write, StorageError, f"{what} is", "written", note)


def on_console(line: str) -> None:
    """Say `line` on the console of this process."""
    say("storage", line)


def read_patiently(read: Callable[[], Result], what: str, note: Callable[[str], None] = on_console) -> Result:
    """What `read` returns, once the storage answers; after `PATIENCE_S` the UnavailableError of the last attempt.

    What is missing, refused or broken is not waited for: its error is raised at once.

    Args:
        what: is read, for the messages.
        note: is told when the trouble begins and when it is over. Default: the console of this process.
    """
    return _patiently(read, UnavailableError, f"{what} is", "read", note)


def _patiently(
    call: Callable[[], Result], passing: type[Exception], what: str, done: str, note: Callable[[str], None]
) -> Result:
    def trouble(state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            why, minutes = state.outcome.exception(), PATIENCE_S / 60
            note(f"{what} not {done}: {why}; trying again for {minutes:.0f} minutes")

    retrying = Retrying(
        retry=retry_if_exception_type(passing),
        wait=wait_exponential(max=LONGEST_WAIT_S),
        stop=stop_after_delay(PATIENCE_S),
        before_sleep=trouble,
        reraise=True,
    )
    result: Result = retrying(call)
    if (attempts := retrying.statistics["attempt_number"]) > 1:
        note(f"{what} {done}, at attempt {attempts}")
    return result
