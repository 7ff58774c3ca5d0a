"""Responses of servers that bend the rules of HTTP in ways that every browser accepts."""

from __future__ import annotations

import http.client
from typing import Any, BinaryIO, cast

MAX_INTERIM_RESPONSES = 16
"""Maximum number of interim responses before the final one."""


class TolerantResponse(http.client.HTTPResponse):
    """A response whose interim responses, and whose header lines without a colon, are skipped.

    http.client takes an interim response other than 100, such as 103 (early hints), for the final one, and ignores all
    headers after a line without a colon, including those that tell how the body is encoded.
    """

    def begin(self) -> None:
        """Read the status line and the headers of the final response."""
        if self.headers is not None:
            return
        for _ in range(MAX_INTERIM_RESPONSES):
            self._begin()
            # 101 (switching protocols), which no request asks for, is final.
            if not 102 <= self.status < 200:
                return
            self.headers = self.msg = None
        raise http.client.BadStatusLine(f"more than {MAX_INTERIM_RESPONSES} interim responses")

    def _begin(self) -> None:
        stream = self.fp
        self.fp = lines = cast(Any, _HeaderLines(stream))
        try:
            super().begin()
        finally:
            if self.fp is lines:
                self.fp = stream


class _HeaderLines:
    """The lines of the head of a response, without those that are no header."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def readline(self, limit: int = -1) -> bytes:
        while line := self._stream.readline(limit):
            if b":" in line or line.startswith((b"HTTP/", b" ", b"\t")) or not line.strip() or len(line) == limit:
                return line
        return line

    def close(self) -> None:
        self._stream.close()

    def flush(self) -> None:
        self._stream.flush()
