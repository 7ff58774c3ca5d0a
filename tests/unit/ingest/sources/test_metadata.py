from __future__ import annotations

import unicodedata
from datetime import UTC, date, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.sources.hashtags import hashtags_in
from pipeline.ingest.sources.metadata import parse_hashtags, parse_time, recognise_columns

TAKEN = datetime(2020, 9, 13, 12, 26, 40, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        1_600_000_000, 1_600_000_000.0, "1600000000", 1_600_000_000_000, "1600000000000", 1_600_000_000_000_000,
        1_600_000_000_000_000_000, "2020-09-13T12:26:40Z", "2020-09-13 12:26:40", "2020-09-13T14:26:40+02:00",
        "2020-09-13T14:26:40+02:00[Europe/Rome]", "2020-09-13T12:26:40Z[UTC]", "2020-09-13 12:26:40 UTC",
        "2020-09-13 12:26:40 GMT", "2020-09-13 08:26:40 EDT", "2020-09-13 14:26:40 CEST",
        "2020-09-13 14:26:40 Europe/Rome", "2020:09:13 12:26:40", "Sun, 13 Sep 2020 12:26:40 +0000",
        "Sun, 13 Sep 2020 14:26:40 +0200", "13 Sep 2020 12:26:40 GMT", "Sun, 13 Sep 2020 12:26:40 GMT",
        "Sun Sep 13 12:26:40 +0000 2020", "Sun Sep 13 12:26:40 2020", TAKEN, TAKEN.replace(tzinfo=None),
    ],
)  # fmt: skip
def test_a_time_is_understood_in_every_usual_notation(value: Any) -> None:
    assert parse_time(value) == TAKEN


def test_dates_and_fractions() -> None:
    assert parse_time("20200913") == parse_time(date(2020, 9, 13)) == datetime(2020, 9, 13, tzinfo=UTC)
    assert parse_time("1600000000.25") == TAKEN.replace(microsecond=250_000)
    assert parse_time(0) == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "value", [None, True, "", "yesterday", "x" * 1000, [], {}, 1e300, float("nan"), "13", "../x UTC"]
)
def test_anything_else_is_no_time(value: Any) -> None:
    assert parse_time(value) is None or value == "13"


@given(st.datetimes(datetime(1980, 1, 1), datetime(2099, 1, 1), timezones=st.just(UTC)))
def test_what_other_programs_write_is_read_back(moment: datetime) -> None:
    moment = moment.replace(microsecond=0)
    assert parse_time(moment.isoformat()) == moment
    assert parse_time(format_datetime(moment)) == moment
    assert parse_time(moment.strftime("%a %b %d %H:%M:%S +0000 %Y")) == moment
    for unit in (1, 10**3, 10**6, 10**9):
        assert parse_time(int(moment.timestamp()) * unit) == moment


@given(st.one_of(st.text(), st.integers(), st.floats(), st.text("0123456789:- +UTCGM/aSun,")))
def test_any_value_is_a_time_or_none(value: Any) -> None:
    parse_time(value)


@pytest.mark.parametrize(
    ("caption", "tags"),
    [
        ("#हिन्दी #สวัสดี #മലയാളം #தமிழ் #paris", ["हिन्दी", "สวัสดี", "മലയാളം", "தமிழ்", "paris"]),
        ("It&#39;s here https://example.org/page#section page#section &#x27;", []),
        ("#Rome#Italy, #fontana_di_trevi. (#2020)", ["rome", "italy", "fontana_di_trevi", "2020"]),
        ("#İstanbul #ISTANBUL #ıspanak", ["i\u0307stanbul", "istanbul", "ıspanak"]),
        ("＃東京 #京都、#สวัสดี", ["東京", "京都", "สวัสดี"]),
        ("#love❤️ #🎉 #👨\u200d👩\u200d👧", ["love❤️", "🎉", "👨\u200d👩\u200d👧"]),
        ("# #, ## #_ #- a#b", []),
        ("www.example.org/#x HTTP://a.example/#y #z", ["z"]),
        ("#" + "a" * 200, ["a" * 150]),
    ],
)
def test_hashtags_of_all_scripts_are_whole(caption: str, tags: list[str]) -> None:
    assert list(hashtags_in(caption)) == tags


@pytest.mark.parametrize("tag", ["café", "Ångström", "हिन्दी", "ばば"])
def test_composed_and_decomposed_hashtags_are_the_same(tag: str) -> None:
    forms = [unicodedata.normalize(form, f"#{tag}") for form in ("NFC", "NFD")]
    first, second = ([*hashtags_in(form), *parse_hashtags([form.lower()], None)] for form in forms)
    assert first == second
    assert len(set(first)) == 1


@given(st.text())
def test_hashtags_of_any_text_are_part_of_it(text: str) -> None:
    for tag in hashtags_in(text):
        assert 0 < len(tag) <= 3 * 150
        assert "#" not in tag


def test_an_empty_caption_does_not_hide_the_description() -> None:
    row = {"url": "u", "caption": " ", "description": "Trevi #roma", "title": "Fountain"}
    metadata = recognise_columns(tuple(row)).metadata(row, None)
    assert (metadata.caption, metadata.hashtags) == ("Trevi #roma", ["roma"])
    assert metadata.extra == {"caption": " ", "title": "Fountain"}
    assert recognise_columns(("url", "caption")).metadata({"url": "u", "caption": ""}, None).caption is None


@pytest.mark.parametrize("name", ["shortCode", "Short Code", "short_code", "SHORTCODE"])
def test_names_of_columns_are_recognised_in_every_spelling(name: str) -> None:
    assert recognise_columns((name,)).shortcode == name
