from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.masking import mask


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:p@a.test:8/x?y#z", "https://a.test:8/x?y#z"),
        ("https://u:p@q@a.test/x@y", "https://a.test/x@y"),
        ("http://user:pa/ss@host:5000/api", "http://host:5000/api"),
        ("http://user:pa/s:s@w@host:5000", "http://host:5000"),
        ("postgresql://u:p/w@db.test:5432/mlflow", "postgresql://db.test:5432/mlflow"),
        ("mysql+pymysql://u:p@w/x@db.test/mlflow", "mysql+pymysql://db.test/mlflow"),
        ("postgresql://db.test/mlflow?user=u&password=p/w&x=1", "postgresql://db.test/mlflow?user=u&password=***&x=1"),
        ("https://a.test/1.jpg?access_token=abc&w=1", "https://a.test/1.jpg?access_token=***&w=1"),
        ("https://a.test/1.jpg?api_key=abc#x", "https://a.test/1.jpg?api_key=***#x"),
        ("see http://u:p@a.test/1 and https://v:q@b.test/2", "see http://a.test/1 and https://b.test/2"),
        ('{"link": "ftp://u:p@a.test/x"}', '{"link": "ftp://a.test/x"}'),
    ],
)
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    assert mask(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "https://a.test/x@y", "https://a.test:8080/@user/1.jpg", "http://[::1]:8080/a@b", "/some/u:p@path", "a@b.test",
        "sqlite:////home/me@work/mlflow.db", "file:///home/me@work/1.jpg", "s3://bucket/me@work/1.jpg", "u:p://x", "",
        "https://a.test/1.jpg?stp=dst&oe=6A00&passenger=1&author=me", "mailto:me@a.test", "3 = 2 + 1 ?x=1",
    ],
)  # fmt: skip
def test_everything_else_stays_as_it_is(text: str) -> None:
    assert mask(text) == text


WORD = st.text("abcXYZ019-._~!$*+", min_size=1)
PASSWORD = st.text("abcXYZ019:/!$%*+-._~", min_size=6).map(lambda text: f"Q{text}Q")
"""Passwords without @: in an address of the web, what follows ``@`` and precedes ``/`` is its host."""


@given(st.sampled_from(["https", "http", "postgresql", "mysql+pymysql", "ftp"]), WORD, PASSWORD, st.text())
def test_no_password_survives(scheme: str, user: str, password: str, around: str) -> None:
    text = f"{around} {scheme}://{user}:{password}@host.test:8080/path?x=1&db_password={password}&y=2 {around}"
    if "Q" not in around and password not in around:
        assert password not in mask(text)
        assert f"{scheme}://host.test:8080/path?x=1&db_password=***&y=2" in mask(text)


PIECES = st.sampled_from(['"', "\\", "http://", "u:p@", "?token=", "&", ":", "/", "x", " ", "\n", "ftp://", "é"])


@given(st.dictionaries(st.text(max_size=3), st.lists(PIECES, max_size=12).map("".join)), st.booleans())
def test_a_json_text_stays_one(document: dict[str, str], compact: bool) -> None:
    text = json.dumps(document, separators=(",", ":") if compact else None, ensure_ascii=False)
    masked = json.loads(mask(text))
    assert masked.keys() == document.keys() or any("://" in key or "=" in key for key in document)


@given(st.one_of(st.text(), st.text("ab:/@?&=#.token ")))
def test_a_masked_text_is_masked(text: str) -> None:
    assert mask(mask(text)) == mask(text)
