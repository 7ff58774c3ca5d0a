"""One request for an image: its bytes, where else it is, or why not.

The server is hostile input as much as the file is: it may never end, send a byte a minute, lead to the cluster's own
network, or inflate a few bytes to gigabytes. Every request is bounded in time, bytes and addresses.
"""

from __future__ import annotations

import email.utils
import re
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import IO
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema

from pipeline.config import HttpConfig
from pipeline.errors import StorageError
from pipeline.ingest.download.connections import CheckedAdapter, Policy
from pipeline.ingest.rejection import Rejected, TemporaryFailure

CHUNK_BYTES = 1 << 16

IN_MEMORY_BYTES = 4 << 20
"""A larger body waits for its decoding in a temporary file."""

DRAIN_S = 0.5
"""Longest wait for the rest of an answer whose body is not wanted."""

MAX_URL_LENGTH = 8192

REDIRECTS = frozenset({301, 302, 303, 307, 308})

WHOLE = frozenset({200, 203})
"""Statuses of answers that are the image; 203: as a proxy passed it on."""

PASSING = frozenset({202, 408, 425, 429})
"""Statuses that ask to come back later; so do all from 500 but 501, which will never be implemented for us."""

OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})

VALUED_DIRECTIVES = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Their colon is followed by a value: it does not end the name of a robot."""


@dataclass(frozen=True)
class Redirect:
    """The image is elsewhere."""

    url: str


class HttpClient:
    """Makes requests, one at a time in each thread, and keeps connections open for the next ones."""

    def __init__(self, config: HttpConfig, max_bytes: int) -> None:
        self._config = config
        self._max_bytes = max_bytes
        self._policy = Policy(config)
        self._adapter = CheckedAdapter(self._policy, config.threads)
        self._headers = {
            "User-Agent": config.user_agent,
            "Accept": "image/*,*/*;q=0.5",
            "Accept-Encoding": "identity",  # images are compressed already
        }

    def get(self, url: str, seconds: float) -> IO[bytes] | Redirect:
        """Ask once for `url`: the body, to be read from its start and closed, or where the server says it is.

        Args:
            url: with http:// or https://; a user name and password in it are sent to that host, and nowhere else.
            seconds: until when all of it is there.

        Raises:
            Rejected: bad_url, unknown_host, private_address, tls_error, http_error, robots_opt_out,
                too_many_bytes (the rest is not read), or corrupt (a broken Content-Encoding).
            TemporaryFailure: no connection, silence, a broken answer, or a status that asks to come back.
            StorageError: this machine's temporary folder is full.
        """
        request = self._prepare(url)
        self._policy.deadline = time.monotonic() + seconds
        try:
            # The adapter alone: a session would read the whole body of a redirect, store cookies and read netrc.
            response = self._adapter.send(
                request, stream=True, timeout=(self._config.connect_timeout_s, self._config.read_timeout_s)
            )
            raw: urllib3.HTTPResponse = response.raw
            try:
                return self._redirect(url, raw) or self._body(raw)
            finally:
                self._finish(raw)
        except InvalidURL as error:
            raise Rejected("bad_url", "not a valid URL") from error
        except urllib3.exceptions.DecodeError as error:
            raise Rejected("corrupt", "the content is not encoded as its header says") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise TemporaryFailure(f"{host_of(url)}: {_in_words(error)}") from error

    def close(self) -> None:
        """Close the connections that were kept."""
        self._adapter.close()

    def _prepare(self, url: str) -> requests.PreparedRequest:
        if len(url) > MAX_URL_LENGTH:
            raise Rejected("bad_url", f"{len(url)} characters, at most {MAX_URL_LENGTH} are asked for")
        try:
            parts = urlsplit(url)
            if parts.scheme.lower() not in {"http", "https"}:
                raise Rejected("bad_url", f"{parts.scheme or 'no scheme'}: only http and https are asked for")
            _ = parts.port  # refuses what is no number
            return requests.Request("GET", url, headers=self._headers).prepare()
        except (InvalidURL, InvalidSchema, MissingSchema, ValueError) as error:
            raise Rejected("bad_url", "not a valid URL") from error

    def _redirect(self, url: str, raw: urllib3.HTTPResponse) -> Redirect | None:
        """Where `raw` leads, None for a body to read; raises what its status or its headers refuse."""
        location = raw.headers.get("Location")
        if raw.status in REDIRECTS and location:
            try:
                # Header bytes arrive as Latin-1; what people send is UTF-8.
                return Redirect(urljoin(url, location.encode("latin-1").decode("utf-8", "replace")))
            except ValueError as error:
                raise Rejected("bad_url", "redirected to what is no valid URL") from error
        if raw.status in PASSING or (raw.status >= 500 and raw.status != 501):
            wait_s = retry_after_s(raw.headers.get("Retry-After"))
            raise TemporaryFailure(_status_words(raw.status), wait_s, host_is_busy=raw.status == 429)
        if raw.status not in WHOLE:
            raise Rejected("http_error", _status_words(raw.status))
        if self._config.honour_robots:
            directive = opt_out(raw.headers.getlist("X-Robots-Tag"), self._config.user_agent)
            if directive is not None:
                raise Rejected("robots_opt_out", f"X-Robots-Tag: {directive}")
        return None

    def _body(self, raw: urllib3.HTTPResponse) -> IO[bytes]:
        if raw.length_remaining is not None and raw.length_remaining > self._max_bytes:
            raise Rejected("too_many_bytes", f"{raw.length_remaining} bytes, at most {self._max_bytes} are read")
        body: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115 (the caller closes it)
        size = 0
        try:
            # Counted after decoding, of which each step is bounded, too.
            for chunk in raw.stream(CHUNK_BYTES, decode_content=True):
                size += len(chunk)
                if size > self._max_bytes:
                    raise Rejected("too_many_bytes", f"more than {self._max_bytes} bytes")
                _write(body, chunk)
        except BaseException:
            body.close()
            raise
        body.seek(0)
        return body

    def _finish(self, raw: urllib3.HTTPResponse) -> None:
        """Keep the connection where reading the rest is less work than a new one; close it otherwise."""
        left = raw.length_remaining
        try:
            if raw.tell() == 0 and left is not None and left <= CHUNK_BYTES:
                self._policy.deadline = min(self._policy.deadline, time.monotonic() + DRAIN_S)
                raw.read(CHUNK_BYTES, decode_content=False)
                raw.release_conn()
                return
        except (urllib3.exceptions.HTTPError, OSError):
            pass
        raw.close()


def _write(body: IO[bytes], chunk: bytes) -> None:
    try:
        body.write(chunk)
    except OSError as error:
        raise StorageError(f"cannot write to {tempfile.gettempdir()}: {error.strerror or error}") from error


def host_of(url: str) -> str:
    """The host that `url` names, in lower case; empty where it names none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def credentials(url: str) -> str:
    """The user name and password in `url`, up to the ``@``; empty where it has none."""
    found = re.match(r"[a-z][a-z0-9+.-]*://([^/?#]*@)", url, re.IGNORECASE)
    return found[1] if found else ""


def without_credentials(url: str) -> str:
    """`url` without a user name and password; anything that is no such URL, as it is."""
    return url.replace("//" + credentials(url), "//", 1)


def retry_after_s(value: str | None) -> float | None:
    """Seconds from now that the header Retry-After asks for, as a number or as a date; None where it does not say."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def opt_out(values: list[str], user_agent: str) -> str | None:
    """The first directive in the X-Robots-Tag headers `values` that asks not to use the image, if any.

    A robot's name before a colon restricts what follows it in the same header to that robot, and matches the name at
    the start of `user_agent`; ``*`` is everybody.
    """
    ourselves = re.split(r"[/\s]", user_agent, maxsplit=1)[0].lower()
    for value in values:
        concerned = True
        for part in value.lower().split(","):
            name, colon, directive = part.partition(":")
            if colon and name.strip() in VALUED_DIRECTIVES:
                continue
            if colon:
                concerned = name.strip() in {"*", ourselves}
            found = (directive if colon else name).strip()
            if concerned and found in OPT_OUTS:
                return found
    return None


def _status_words(status: int) -> str:
    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def _in_words(error: BaseException) -> str:
    """What is at the root of `error`, the same for the same fault: libraries' messages hold addresses of objects."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, TimeoutError | requests.Timeout | urllib3.exceptions.TimeoutError):
            return "no answer in time"
        if isinstance(current, urllib3.exceptions.IncompleteRead):
            return "the answer ended early"
        root = current
        current = current.__cause__ or current.__context__
    if isinstance(root, OSError) and root.strerror:
        return root.strerror
    return f"no valid answer ({type(root).__name__})"
