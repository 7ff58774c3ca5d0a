"""Storage that fails for a while must not cost a training run of hours."""

from __future__ import annotations

from collections.abc import Callable

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from pipeline.errors import StorageError

PATIENCE_S = 600.0
"""How long a write is tried again."""
LONGEST_WAIT_S = 15.0
"""Between two attempts."""


def patiently(write: Callable[[], None], what: str, note: Callable[[str], None]) -> None:
    """Call `write` until the storage takes it, or for `PATIENCE_S`; then the StorageError of the last attempt.

    Args:
        what: is written, for the messages.
        note: is told when the trouble begins and when it is over.
    """

    def trouble(state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            note(f"{what} is not written: {state.outcome.exception()}; trying again for {PATIENCE_S / 60:.0f} minutes")

    retrying = Retrying(
        retry=retry_if_exception_type(StorageError),
        wait=wait_exponential(max=LONGEST_WAIT_S),
        stop=stop_after_delay(PATIENCE_S),
        before_sleep=trouble,
        reraise=True,
    )
    retrying(write)
    if (attempts := retrying.statistics["attempt_number"]) > 1:
        note(f"{what} is written, at attempt {attempts}")
