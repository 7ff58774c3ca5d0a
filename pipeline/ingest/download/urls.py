"""Helpers for URLs of images: recognise them, and get the host and the target of a request."""

from __future__ import annotations

import re
import string
from functools import lru_cache
from urllib.parse import quote, urlsplit

import requests
from requests.exceptions import RequestException

SENT_UNCHANGED = "".join(sorted(set(string.punctuation) - set('"<>\\^`{|}')))
"""Punctuation that a request's target may contain. A percent sign is among it: servers sign addresses as they came."""

_TARGET = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\\]*([^#]*)", re.IGNORECASE)
_DOT_SEGMENT = re.compile(r"/\.\.?(/|$)")


def is_url(address: str) -> bool:
    """Whether `address` is an http:// or https:// URL."""
    return address[:8].lower().startswith(("http://", "https://"))


@lru_cache(maxsize=1024)
def request_url(url: str) -> str:
    """Return `url` as requests sends it. Its host is the one that the connection leads to.

    Raises ValueError, or one of the exceptions of requests, if no request can be made from it.
    """
    return requests.Request("GET", url).prepare().url or ""


def host_of(url: str) -> str:
    """Return the name of the host to which a request for `url` connects, in lower case; empty if it is not valid.

    Limits, policy and connection must agree on the host, and parsers disagree on hostile URLs: in
    ``http://a\\@b/``, some find a and others b. Therefore the URL is parsed as requests parses it.
    """
    try:
        return (urlsplit(request_url(url)).hostname or "").rstrip(".")
    except (RequestException, ValueError):
        return ""


def request_target(url: str) -> str:
    """Return the path and query of `url` for the request line, with percent signs as they came.

    requests would decode ``%7E`` and encode the percent sign in ``100%.jpg``; a signature of the address would then no
    longer match. Characters that no request line may contain are encoded, and dot segments are resolved.
    """
    match = _TARGET.fullmatch(url.strip())
    target = quote(match[1], safe=SENT_UNCHANGED) if match else ""
    if not target.startswith("/") or _DOT_SEGMENT.search(target.partition("?")[0]):
        parts = urlsplit(request_url(url))
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return target
