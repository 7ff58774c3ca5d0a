"""Notice addresses that lead to web pages instead of images, before thousands of them are requested in vain."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.errors import SourceError
from pipeline.ingest.rejection import Rejected

PAGES_IN_A_ROW = 100
"""Number of answers, all of them pages, after which no more are requested."""

_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.{0,2000}?-->\s*)*<(!doctype\s+html|html)", re.I | re.S)

Answer = tuple[int, bytes | Rejected]


def is_page(content: bytes) -> bool:
    """Return whether `content` begins like a web page."""
    return _PAGE.match(content) is not None


def refuse_pages(answers: Iterator[Answer]) -> Iterator[Answer]:
    """Yield the `answers` of one shard, the contents of addresses or the reasons why there are none.

    Raises SourceError if the first contents are PAGES_IN_A_ROW web pages.
    """
    pages: int | None = 0
    for key, content in answers:
        if pages is not None and isinstance(content, bytes):
            pages = pages + 1 if is_page(content) else None
            if pages == PAGES_IN_A_ROW:
                raise SourceError(
                    f"the first {PAGES_IN_A_ROW} answers are web pages, not images; name the column with the addresses "
                    "of image files with --url-column, or, if the host asks for a login, fetch the images otherwise"
                )
        yield key, content
