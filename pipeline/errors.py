"""What can go wrong, in the user's words: every message says what, where, what was expected and what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class PipelineError(Exception):
    """Root of every error that a user can act on. Its message is one line; the job ends with ``exit_code``."""

    exit_code = 1


class ConfigError(PipelineError):
    """The configuration asks for something unknown or impossible; refused before any work."""

    exit_code = 2


class SourceError(PipelineError):
    """A crawl is missing or cannot be read at all (one bad image is a rejected record instead)."""

    exit_code = 2


class StorageError(PipelineError):
    """The workspace refused a read or a write."""


class UnavailableError(StorageError):
    """The workspace does not answer as it should; it may later."""


class ClusterError(PipelineError):
    """Ray cannot be reached."""


class ClusteringError(PipelineError):
    """Training cannot go on: too few resources, a loss that is not a number, workers that keep dying."""


def user_error(error: BaseException) -> PipelineError | None:
    """The PipelineError inside `error`, however deep a Ray task or a trainer wrapped it; None for a bug."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        # Ray raises a class that derives from both its own error and the cause; the cause has the clean message.
        nested = [current.__cause__, current.__context__, getattr(current, "cause", None)]
        failures = getattr(current, "worker_failures", None)
        nested += list(failures.values()) if isinstance(failures, dict) else []
        inner = [e for e in nested if isinstance(e, BaseException)]
        if isinstance(current, PipelineError) and not any(isinstance(e, PipelineError) for e in inner):
            return current
        queue.extend(inner)
    return None


def exit_with(main: Callable[[], None]) -> NoReturn:
    """Run a job's `main` and exit: 0, or one line on standard error and the error's exit code.

    A PipelineError prints its message without a traceback; anything else is a bug and keeps its traceback.
    """
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        known = user_error(error)
        if known is None:
            raise
        print(f"error: {known}", file=sys.stderr, flush=True)
        sys.exit(known.exit_code)
    sys.exit(0)
