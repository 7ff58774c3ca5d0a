from __future__ import annotations

import pytest

from pipeline.errors import SourceError
from pipeline.ingest.download.pages import PAGES_IN_A_ROW, refuse_pages
from pipeline.ingest.rejection import Rejected

PAGES = [
    b"<!DOCTYPE html><html>",
    b"\n <html lang='en'>",
    b"\xef\xbb\xbf<!doctype HTML>",
    b"<?xml version='1.0'?>\n<!-- a -->\n<html>",
]
GONE = Rejected("http_error", "HTTP 404 Not Found")


@pytest.mark.parametrize("page", PAGES)
def test_a_hundred_pages_are_enough(page: bytes) -> None:
    answers: list[bytes | Rejected] = [GONE, *[page] * PAGES_IN_A_ROW, b"never requested"]
    found = []
    with pytest.raises(SourceError, match=r"first 100 answers are web pages.*--url-column"):
        for answer in refuse_pages(iter(enumerate(answers))):
            found.append(answer)
    assert found == list(enumerate(answers[:PAGES_IN_A_ROW]))


@pytest.mark.parametrize("image", [b"\xff\xd8\xff", b"", b"<svg>", b"{}"])
def test_one_answer_that_is_no_page_lifts_the_suspicion(image: bytes) -> None:
    answers = list(enumerate([PAGES[0]] * 99 + [image] + [PAGES[0]] * 500))
    assert list(refuse_pages(iter(answers))) == answers
