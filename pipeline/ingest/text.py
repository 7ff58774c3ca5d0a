"""Text of any origin to text that Arrow and UTF-8 can hold."""

from __future__ import annotations


def storable(text: str) -> str:
    """`text` with backslash escapes for what UTF-8 cannot hold: lone surrogates, which also stand for stray bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
