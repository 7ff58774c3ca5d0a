"""Helpers for URLs of images: recognise them, and get their hosts and the user names and passwords in them."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def is_url(address: str) -> bool:
    """Whether `address` is an http:// or https:// URL."""
    return address[:8].lower().startswith(("http://", "https://"))


def host_of(url: str) -> str:
    """Return the host name of `url` in lower case; empty if it has none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def userinfo(url: str) -> str:
    """Return the user name and password in `url`, including the ``@``; empty if it has none."""
    found = re.match(r"[a-z][a-z0-9+.-]*://([^/?#]*@)", url, re.IGNORECASE)
    return found[1] if found else ""


def strip_userinfo(url: str) -> str:
    """Return `url` without user name and password; an address without them is returned unchanged."""
    return url.replace("//" + userinfo(url), "//", 1)
