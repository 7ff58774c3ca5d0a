from __future__ import annotations

import pytest

from pipeline.reporting.page.sanitize import plain_text, web_link


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ""),
        ("  two\n lines\t", "two lines"),
        ("café 東京 👩\u200d👧", "café 東京 👩\u200d👧"),
        ("\u202eevil\u2066\x00", "evil"),
        ("x" * 200, "x" * 139 + "…"),
        ("\n" * 10_000 + "late", ""),
    ],
)
def test_text_is_sanitized(text: str | None, expected: str) -> None:
    assert plain_text(text) == expected


@pytest.mark.parametrize(
    "address",
    ["http://example.org", "https://example.org:8443/a?b=c&d=%20#e", "https://例え.jp/写真", "HTTPS://EXAMPLE.org/"],
)
def test_web_addresses_are_linked(address: str) -> None:
    assert web_link(None, address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "javascript:alert(1)",
        " javascript:alert(1)",
        "java\nscript:alert(1)",
        "https://",
        "https:///path",
        "//example.org",
        "/photos/a.jpg",
        "file:///photos/a.jpg",
        "s3://bucket/a.jpg",
        "https://user:password@example.org/",
        "https://example.org/a b",
        "https://[broken/",
        "https://example.org/" + "x" * 2000,
        "https://example.org/\u202e",
    ],
)
def test_other_addresses_are_not_linked(address: str) -> None:
    assert web_link(address) is None
