"""A single request for an image: its outcome is the body, a redirect, or the reason for a failure.

The server is as hostile an input as the file: it may send data endlessly, send one byte per minute, redirect to the
cluster's own network, or inflate a few bytes to gigabytes. Every request is therefore limited in time, in bytes, and in
the addresses that it may reach.
"""

from __future__ import annotations

import email.utils
import re
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import IO
from urllib.parse import quote, urljoin, urlsplit

import requests
import urllib3
from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema

from pipeline.config import HttpConfig
from pipeline.errors import StorageError
from pipeline.ingest.download.connections import CheckedAdapter, Policy
from pipeline.ingest.download.pages import is_page
from pipeline.ingest.download.robots_txt import check_robots_txt
from pipeline.ingest.download.urls import SENT_UNCHANGED, host_of, request_target, request_url
from pipeline.ingest.rejection import Rejected, TemporaryFailure

CHUNK_BYTES = 1 << 16
"""Number of bytes that are read at once."""

IN_MEMORY_BYTES = 4 << 20
"""Maximum size of a body that is held in memory until it is decoded; a larger one is held in a temporary file."""

DRAIN_S = 0.5
"""Maximum time to read the rest of a response whose body is not needed."""

MAX_URL_LENGTH = 8192
"""Maximum number of characters in a URL."""

REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
"""HTTP statuses of redirects."""

COMPLETE_STATUSES = frozenset({200, 203})
"""HTTP statuses of responses whose body is the image; with 203, a proxy has passed it on."""

EXPIRED_STATUSES = frozenset({400, 401, 403, 410})
"""HTTP statuses with which servers answer addresses whose signature has expired."""

EXPIRED_TEXT = re.compile(rb"expired|signature not valid in the specified time", re.IGNORECASE)
"""What a server says about an expired signature: those of Instagram, Amazon, Google and Microsoft."""

EXPIRY_TIME = re.compile(r"[?&]oe=([0-9a-f]{8})(?=&|#|$)", re.IGNORECASE)
"""The time in an address of Instagram from which it is not valid any more: seconds since 1970, hexadecimal."""

REFUSAL_BYTES = 2**12
"""Number of bytes of a refusal that are read."""

TEMPORARY_STATUSES = frozenset({202, 408, 425, 429})
"""HTTP statuses that may be temporary. So are all statuses from 500 except 501 (not implemented)."""

OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""Directives of X-Robots-Tag that forbid the use of an image."""

VALUED_DIRECTIVES = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Directives of X-Robots-Tag whose colon precedes a value. Otherwise, the text before a colon names a robot."""


@dataclass(frozen=True)
class Redirect:
    """A redirect of the server to another URL."""

    url: str


class HttpClient:
    """Makes requests, one at a time in each thread, and keeps connections open for later requests."""

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
        """Request `url` once. Return the body, which the caller must read and close, or a redirect.

        Args:
            url: an http:// or https:// URL. A user name and password in it are sent to its host only.
            seconds: time limit for the whole response.

        Raises:
            Rejected: bad_url, unknown_host, private_address, tls_error, http_error, robots_opt_out,
                too_many_bytes (the rest is not read), or corrupt (the body does not match its Content-Encoding).
            TemporaryFailure: there was no connection, no response in time, an invalid response, or a temporary status.
            StorageError: the temporary folder of this machine cannot be written to.
        """
        self._policy.deadline = time.monotonic() + seconds
        if self._config.robots_txt:
            self._prepare(url)
            check_robots_txt(url, self._config.user_agent, self._follow)
        return self._request(url)

    def _follow(self, url: str) -> IO[bytes]:
        """Request `url` and follow redirects; return the body. Raises the same errors as `get`."""
        for _ in range(self._config.max_redirects + 1):
            answer = self._request(url)
            if not isinstance(answer, Redirect):
                return answer
            url = answer.url
        raise Rejected("too_many_redirects", f"more than {self._config.max_redirects} redirects")

    def _request(self, url: str) -> IO[bytes] | Redirect:
        request = self._prepare(url)
        self._policy.target = request_target(url)
        try:
            # A session would read the whole body of a redirect, store cookies and read netrc; the adapter does not.
            response = self._adapter.send(
                request, stream=True, timeout=(self._config.connect_timeout_s, self._config.read_timeout_s)
            )
            raw: urllib3.HTTPResponse = response.raw
            try:
                return self._check_response(request_url(url), raw) or self._read_body(raw)
            finally:
                self._release_or_close(raw)
        except InvalidURL as error:
            raise Rejected("bad_url", "not a valid URL") from error
        except urllib3.exceptions.DecodeError as error:
            raise Rejected("corrupt", "the body is not encoded as its Content-Encoding header says") from error
        except (Rejected, TemporaryFailure, StorageError):
            raise
        except MemoryError as error:
            raise StorageError(f"cannot download from {host_of(url)}: this machine is out of memory") from error
        except Exception as error:  # libraries raise more than they document, such as ValueError for a chunk size of -1
            raise TemporaryFailure(f"{host_of(url)}: {_root_cause(error)}") from error

    def close(self) -> None:
        """Close all connections that were kept open."""
        self._adapter.close()

    def _prepare(self, url: str) -> requests.PreparedRequest:
        if len(url) > MAX_URL_LENGTH:
            raise Rejected("bad_url", f"the URL has {len(url)} characters; at most {MAX_URL_LENGTH} are allowed")
        try:
            parts = urlsplit(url)
            if parts.scheme.lower() not in {"http", "https"}:
                raise Rejected("bad_url", f"expected http:// or https://, found {parts.scheme or 'no scheme'}")
            _ = parts.port  # raises ValueError if the port is not a number
            return requests.Request("GET", url, headers=self._headers).prepare()
        except (InvalidURL, InvalidSchema, MissingSchema, ValueError) as error:
            raise Rejected("bad_url", "not a valid URL") from error

    def _check_response(self, url: str, raw: urllib3.HTTPResponse) -> Redirect | None:
        """Return the redirect in `raw`, or None if its body is to be read.

        Raises Rejected or TemporaryFailure because of its status or its headers.
        """
        location = raw.headers.get("Location")
        if raw.status in REDIRECT_STATUSES and location:
            try:
                return Redirect(urljoin(url, _location(location)))
            except ValueError as error:
                raise Rejected("bad_url", "the redirect target is not a valid URL") from error
        if raw.status in TEMPORARY_STATUSES or (raw.status >= 500 and raw.status != 501):
            wait_s = retry_after_s(raw.headers.get("Retry-After"))
            raise TemporaryFailure(_describe_status(raw.status), wait_s, host_is_busy=raw.status == 429)
        if raw.status not in COMPLETE_STATUSES:
            if raw.status in EXPIRED_STATUSES and (expires_before(url, time.time()) or _says_expired(raw)):
                raise Rejected("expired", f"{_describe_status(raw.status)}: the signature of the address has expired")
            raise Rejected("http_error", _describe_status(raw.status))
        if self._config.honour_robots:
            directive = opt_out(raw.headers.getlist("X-Robots-Tag"), self._config.user_agent)
            if directive is not None:
                raise Rejected("robots_opt_out", f"X-Robots-Tag: {directive}")
        return None

    def _read_body(self, raw: urllib3.HTTPResponse) -> IO[bytes]:
        if raw.length_remaining is not None and raw.length_remaining > self._max_bytes:
            raise Rejected("too_many_bytes", f"{raw.length_remaining} bytes; at most {self._max_bytes} are accepted")
        body: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES)  # noqa: SIM115 (the caller closes it)
        size = 0
        try:
            # The bytes are counted after decoding; each decoding step is limited as well.
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

    def _release_or_close(self, raw: urllib3.HTTPResponse) -> None:
        """Keep the connection open if little of the response is left to read; close it otherwise."""
        remaining = raw.length_remaining
        try:
            if raw.tell() == 0 and remaining is not None and remaining <= CHUNK_BYTES:
                self._policy.deadline = min(self._policy.deadline, time.monotonic() + DRAIN_S)
                raw.read(CHUNK_BYTES, decode_content=False)
                raw.release_conn()
                return
        except Exception:  # whatever an odd rest of the response causes: the connection is not used again
            pass
        with suppress(Exception):
            raw.close()


def expires_before(url: str, now: float) -> bool:
    """Return whether `url` says that it was only valid before `now`, in seconds since 1970."""
    match = EXPIRY_TIME.search(url)
    return match is not None and int(match[1], 16) < now


def _says_expired(raw: urllib3.HTTPResponse) -> bool:
    """Return whether the text of a refusal, which is not a web page, says that the address has expired."""
    try:
        text = raw.read(REFUSAL_BYTES, decode_content=True)
    except Exception:  # the refusal stands, whatever its body is
        return False
    return EXPIRED_TEXT.search(text) is not None and not is_page(text)


def _location(value: str) -> str:
    """Return the address in the header Location, whose bytes are decoded as Latin-1.

    Servers send UTF-8; bytes that are not UTF-8 are percent-encoded, and so reach the target as they are.
    """
    raw = value.encode("latin-1")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return quote(raw, safe=SENT_UNCHANGED)


def _write(body: IO[bytes], chunk: bytes) -> None:
    try:
        body.write(chunk)
    except OSError as error:
        raise StorageError(f"cannot write to {tempfile.gettempdir()}: {error.strerror or error}") from error


def retry_after_s(value: str | None) -> float | None:
    """Return the seconds to wait from now by the header Retry-After, a number or a date; None if it is neither."""
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
    """Return the first directive in the X-Robots-Tag headers `values` that forbids the use of the image, if any.

    The name of a robot before a colon restricts the rest of its header to that robot. It is compared with the name at
    the start of `user_agent`; ``*`` stands for all robots.
    """
    own_name = re.split(r"[/\s]", user_agent, maxsplit=1)[0].lower()
    for value in values:
        applies = True
        for part in value.lower().split(","):
            name, colon, directive = part.partition(":")
            if colon and name.strip() in VALUED_DIRECTIVES:
                continue
            if colon:
                applies = name.strip() in {"*", own_name}
            rule = (directive if colon else name).strip()
            if applies and rule in OPT_OUTS:
                return rule
    return None


def _describe_status(status: int) -> str:
    try:
        return f"HTTP {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def _root_cause(error: BaseException) -> str:
    """Describe the root cause of `error`; equal causes give equal texts.

    The messages of libraries are not used, since they contain memory addresses of objects.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, TimeoutError | requests.Timeout | urllib3.exceptions.TimeoutError):
            return "no response in time"
        if isinstance(current, urllib3.exceptions.IncompleteRead):
            return "the response ended early"
        root = current
        current = current.__cause__ or current.__context__
    if isinstance(root, OSError) and root.strerror:
        return root.strerror
    return f"no valid response ({type(root).__name__})"
