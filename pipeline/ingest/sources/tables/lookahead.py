"""An iterator whose next items can be looked at before they are consumed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Lookahead(Iterator[T], Generic[T]):
    """The items of `source`. An error of the source follows the items before it, also in a look ahead."""

    def __init__(self, source: Iterator[T]) -> None:
        self._source = source
        self._ahead: deque[T] = deque()
        self._error: Exception | None = None

    def ahead(self, count: int) -> list[T]:
        """Return the next `count` items without consuming them; fewer at the end, and before an error."""
        try:
            while self._error is None and len(self._ahead) < count:
                self._ahead.append(next(self._source))
        except Exception as error:  # StopIteration, too
            self._error = error
        return [self._ahead[i] for i in range(min(count, len(self._ahead)))]

    def __next__(self) -> T:
        if self._ahead:
            return self._ahead.popleft()
        if self._error is not None:
            raise self._error
        return next(self._source)

    def put_back(self, items: list[T]) -> None:
        """Let `items`, which were returned last, come again."""
        self._ahead.extendleft(reversed(items))
