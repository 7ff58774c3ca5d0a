"""The rules that hosts publish for crawlers in ``/robots.txt`` (RFC 9309), honoured where the user asks for it."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import IO
from urllib.parse import urlsplit

from protego import Protego

from pipeline.ingest.download.urls import request_url
from pipeline.ingest.rejection import Rejected

KEPT_S = 3600.0
"""Time in seconds after which the rules of a host are requested again; RFC 9309 allows 24 hours."""

MAX_RULES_BYTES = 500 * 2**10
"""Number of bytes of the rules that are read; the rest is ignored, as RFC 9309 (section 2.5) allows."""

_kept: dict[str, tuple[float, Protego]] = {}
"""Rules by origin, each with the time of its request. All shards of a process share them."""
_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""One lock per origin, so that it is asked only once."""


def check_robots_txt(url: str, user_agent: str, fetch: Callable[[str], IO[bytes]]) -> None:
    """Raise Rejected (robots_opt_out) if the host of `url` forbids `user_agent` to request it.

    Args:
        url: the URL of an image; one that is not valid raises an exception of requests.
        user_agent: value of the User-Agent header; rules are compared with the part before the first ``/``.
        fetch: function that requests a URL on the same host and returns its body. If it raises Rejected, as for HTTP
            404, the host has no rules. Other exceptions are passed on: a host that cannot say forbids everything.
    """
    address = request_url(url)
    parts = urlsplit(address)
    origin = f"{parts.scheme}://{parts.netloc}"
    with _locks[origin]:
        kept = _kept.get(origin)
        if kept is None or time.monotonic() - kept[0] > KEPT_S:
            kept = _kept[origin] = time.monotonic(), _rules(fetch, f"{origin}/robots.txt")
    if not kept[1].can_fetch(address, user_agent.partition("/")[0]):
        raise Rejected("robots_opt_out", f"forbidden by /robots.txt of {parts.hostname}")


def _rules(fetch: Callable[[str], IO[bytes]], url: str) -> Protego:
    try:
        with fetch(url) as body:
            text = body.read(MAX_RULES_BYTES).decode("utf-8", "replace")
    except Rejected:
        text = ""
    try:
        return Protego.parse(text)
    except Exception:  # rules that the parser fails on are no rules
        return Protego.parse("")
