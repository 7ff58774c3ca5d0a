"""Sanitize text and links of a crawl for the page: no control characters, and only links to the web.

The template escapes all text; this module covers the risks that escaping does not.
"""

from __future__ import annotations

import unicodedata
from urllib.parse import urlsplit

CAPTION_LENGTH = 140
"""Maximum length of a caption in characters."""
LINK_LENGTH = 1000
"""Maximum length of a URL that is linked."""
HIDDEN = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
"""Unicode categories of characters that are removed, such as controls, some of which change the text direction."""
JOINERS = "\u200c\u200d"
"""Characters of these categories that are kept, since scripts such as Persian and emojis such as families need them."""


def plain_text(text: str | None, length: int = CAPTION_LENGTH) -> str:
    """Return `text` on one line, without control characters, in at most `length` characters; "" if `text` is None."""
    visible = (c if c in JOINERS or unicodedata.category(c) not in HIDDEN else " " for c in (text or "")[: 20 * length])
    line = " ".join("".join(visible).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def web_link(*addresses: str | None) -> str | None:
    """Return the first of `addresses` that is safe to link: http or https, with a host, without user and password."""
    for address in addresses:
        if address is None or len(address) > LINK_LENGTH or plain_text(address, LINK_LENGTH) != address:
            continue
        try:
            parts = urlsplit(address)
            is_safe = parts.scheme in ("http", "https") and parts.hostname and parts.username is None
        except ValueError:
            continue
        if is_safe and " " not in address:
            return address
    return None
