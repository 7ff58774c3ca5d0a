"""Errors that a user can act on. Each message names the faulty value, what was expected and the remedy, in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class PipelineError(Exception):
    """Base class of all errors that a user can act on; the message is one line, and the job ends with ``exit_code``."""

    exit_code = 1


class ConfigError(PipelineError):
    """The configuration contains an unknown key, or a value that is invalid or does not fit the collection.

    Most are raised before any work begins. Some values can only be checked later, such as K against the number of
    accepted images after ingest, or the model of a warm start before a trial.
    """

    exit_code = 2


class SourceError(PipelineError):
    """A source is missing or cannot be read at all. A single unreadable image is a rejected record instead."""

    exit_code = 2


class StorageError(PipelineError):
    """The storage of the workspace failed to read or write a file."""


class UnavailableError(StorageError):
    """The storage of the workspace failed temporarily; the same operation may succeed later."""


class ClusterError(PipelineError):
    """The Ray cluster cannot be reached, or a task died in every attempt."""


class ClusteringError(PipelineError):
    """Training cannot continue: too few resources, a loss that is not finite, or workers that fail repeatedly."""


def user_error(error: BaseException) -> PipelineError | None:
    """Return the PipelineError that caused `error`, through all wrappers of Ray; None if there is none (a bug)."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        # Ray raises an error that is also an instance of its cause's class; only the cause has the original message.
        nested = [current.__cause__, current.__context__, getattr(current, "cause", None)]
        failures = getattr(current, "worker_failures", None)
        nested += list(failures.values()) if isinstance(failures, dict) else []
        inner = [e for e in nested if isinstance(e, BaseException)]
        if isinstance(current, PipelineError) and not any(isinstance(e, PipelineError) for e in inner):
            return current
        queue.extend(inner)
    return None


def exit_with(main: Callable[[], None]) -> NoReturn:
    """Run the `main` of a job and exit with code 0, or with the exit code of the error.

    A PipelineError prints its one-line message to standard error; any other exception is a bug and keeps its traceback.
    """
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        known = user_error(error)
        if known is None:
            raise
        from pipeline.console import printable

        print(f"error: {printable(str(known))}", file=sys.stderr, flush=True)
        sys.exit(known.exit_code)
    sys.exit(0)
