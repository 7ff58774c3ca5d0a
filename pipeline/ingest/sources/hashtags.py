"""Hashtags in captions, in all scripts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

MAX_TAG_CHARS = 150
"""Maximum length of a hashtag in characters; the rest is cut off."""

# A fragment of a URL is no hashtag.
_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_SIGN = re.compile("[#\uff03]")
_JOINERS = "\u200c\u200d"
_FIRST_EMOJI = "\u2600"


def hashtags_in(text: str) -> Iterator[str]:
    """Yield the hashtags in `text` in lower case and composed form (NFC), without #.

    A hashtag consists of letters with their marks, digits, underscores and emoji. What follows a word
    (``page#section``) or an ampersand (``&#39;``) is none, except for one that follows another: ``#a#b``.
    """
    text = _URL.sub(" ", text)
    last_end = 0
    for sign in _SIGN.finditer(text):
        start = sign.end()
        before = text[sign.start() - 1] if sign.start() else " "
        if sign.start() != last_end and (before == "&" or _belongs(before)):
            continue
        end = start
        while end < len(text) and end - start < MAX_TAG_CHARS and _belongs(text[end]):
            end += 1
        tag = normal_form(text[start:end])
        if any(unicodedata.category(character)[0] in "LNS" for character in tag):
            yield tag.lower()
            last_end = end


def normal_form(tag: str) -> str:
    """Return `tag` in composed form (NFC), without joiners at its ends: equal tags have equal characters."""
    return unicodedata.normalize("NFC", tag).strip(_JOINERS)


def _belongs(character: str) -> bool:
    """Return whether `character` can be part of a hashtag."""
    if character.isalnum() or character == "_" or character in _JOINERS:
        return True
    category = unicodedata.category(character)
    return category[0] == "M" or (category in {"So", "Sk"} and character >= _FIRST_EMOJI)
