"""What a crawl says, made fit to be shown: text without tricks, links that lead to the web and nowhere else.

Escaping is the template's work; here is only what escaping does not cover.
"""

from __future__ import annotations

import unicodedata
from urllib.parse import urlsplit

CAPTION_LENGTH = 140
LINK_LENGTH = 1000
"""Longer addresses are not linked."""
HIDDEN = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
"""Unicode categories that are not shown: controls, among them those that turn the direction of what follows."""
JOINERS = "\u200c\u200d"
"""Exceptions: scripts such as Persian and emojis such as families need them."""


def plain_text(text: str | None, length: int = CAPTION_LENGTH) -> str:
    """`text` on one line, without control characters, cut to `length` characters; empty for None."""
    shown = (c if c in JOINERS or unicodedata.category(c) not in HIDDEN else " " for c in (text or "")[: 20 * length])
    line = " ".join("".join(shown).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def web_link(*addresses: str | None) -> str | None:
    """The first of `addresses` that a browser may be sent to: http or https, with a host, without a password."""
    for address in addresses:
        if address is None or len(address) > LINK_LENGTH or plain_text(address, LINK_LENGTH) != address:
            continue
        try:
            parts = urlsplit(address)
            sound = parts.scheme in ("http", "https") and parts.hostname and parts.username is None
        except ValueError:
            continue
        if sound and " " not in address:
            return address
    return None
