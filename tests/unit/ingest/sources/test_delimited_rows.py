from __future__ import annotations

import csv
import io
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.sources.tables.delimited_rows import csv_rows, tsv_rows
from pipeline.ingest.sources.tables.rows import BrokenRow, NotATable
from tests.support.fuzzing import fuzzed


def rows(text: str | bytes, read: Any = csv_rows) -> list[dict[str, Any] | BrokenRow]:
    return [row for _, row in read(io.BytesIO(text.encode() if isinstance(text, str) else text))]


def a(i: int) -> str:
    return f"https://a.example/{i}"


@pytest.mark.parametrize(
    "text",
    [
        f'url;"caption, short";date\n{a(1)};a;2020\n',
        f"sep=;\nurl;caption, short;date\n{a(1)};a;2020\n",
        f"url\tcaption, short\tdate\n{a(1)}\ta\t2020\n",
        f"url|caption, short|date\n{a(1)}|a|2020\n",
        f'url,"caption, short",date\r{a(1)},a,2020\r',
        f'url,"caption, short",date\n{a(1)},a,2020\n{a(2)},"a;b;c;d",2020\n',
    ],
)
def test_the_delimiter_is_the_one_that_gives_equal_rows(text: str) -> None:
    assert rows(text)[0] == {"url": a(1), "caption, short": "a", "date": "2020"}


def test_one_column_needs_no_delimiter() -> None:
    assert rows(f"url\n{a(1)}\n{a(2)}\n") == [{"url": a(1)}, {"url": a(2)}]


def test_an_index_without_a_name_does_not_shift_the_columns() -> None:
    assert rows(f"url,caption\n0,{a(1)},x\n1,{a(2)},y\n") == [
        {"column_1": "0", "url": a(1), "caption": "x"},
        {"column_1": "1", "url": a(2), "caption": "y"},
    ]
    assert rows(f",url\n0,{a(1)}\n") == [{"column_1": "0", "url": a(1)}]
    assert rows(f"url,caption\n{a(1)},x,\n") == [{"url": a(1), "caption": "x"}]


def test_two_stray_quotes_do_not_swallow_the_rows_between_them() -> None:
    text = f'url,caption\n{a(1)},"Best day\n{a(2)},plain\n{a(3)},third\n{a(4)},"Home" at last\n{a(5)},last\n'
    assert rows(text) == [
        {"url": a(1), "caption": '"Best day'},
        {"url": a(2), "caption": "plain"},
        {"url": a(3), "caption": "third"},
        {"url": a(4), "caption": "Home at last"},
        {"url": a(5), "caption": "last"},
    ]


def test_two_stray_quotes_that_look_like_a_quoted_text_do_not_either() -> None:
    text = f'caption,url\n"Best day,{a(1)}\nplain,{a(2)}\nat home",{a(3)}\n'
    assert [row["url"] for row in rows(text) if not isinstance(row, BrokenRow)] == [a(1), a(2), a(3)]
    text = f'url,caption\n{a(1)},"x\n{a(2)},y\n{a(3)},z"\n'
    assert [row["url"] for row in rows(text) if not isinstance(row, BrokenRow)] == [a(1), a(2), a(3)]


@pytest.mark.parametrize(
    "caption", ["two\nlines", f"see\n{a(9)}\nand more", f"{a(9)}, {a(8)}\nx", 'said "yes"\n\nand, then', "\n,\n"]
)
def test_a_quoted_text_of_several_lines_is_one_cell(caption: str) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["url", "caption", "n"], [a(1), caption, "1"], [a(2), "plain", "2"]])
    assert rows(buffer.getvalue()) == [
        {"url": a(1), "caption": caption, "n": "1"},
        {"url": a(2), "caption": "plain", "n": "2"},
    ]


def test_quotes_in_a_tsv_are_text_unless_the_header_is_quoted() -> None:
    assert rows(f'url\tcaption\n{a(1)}\t"Best day\n{a(2)}\t"Home" at last\n', tsv_rows) == [
        {"url": a(1), "caption": '"Best day'},
        {"url": a(2), "caption": '"Home" at last'},
    ]
    assert rows(f'"url"\t"caption"\n"{a(1)}"\t"two\nlines"\n', tsv_rows) == [{"url": a(1), "caption": "two\nlines"}]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("line", ['"', 'a"b,"c\n', '"""\n', f'{a(1)},""""\n', f'x"{a(1)},"y\n', f'{a(1)},"x\n', "\n"])
def test_the_time_to_read_a_hostile_table_grows_with_its_length_only(line: str) -> None:
    found = rows("url,caption\n" + f'{a(0)},"open\n' + line * 100_000)
    assert found


CAPTIONS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"))


@pytest.mark.fuzz
@fuzzed(200)
@given(st.lists(st.tuples(st.integers(0, 999).map(a), CAPTIONS, st.text("ab")), min_size=1))
def test_what_a_csv_writer_writes_is_read_back(table: list[tuple[str, str, str]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([("url", "caption", "tags"), *table])
    found = rows(buffer.getvalue())
    expected = [dict(zip(("url", "caption", "tags"), row, strict=True)) for row in table]
    # Only a text that itself looks like rows of the table may be taken for rows.
    if not any("http" in caption for _, caption, _ in table):
        assert found == expected


@pytest.mark.fuzz
@fuzzed(300)
@given(st.lists(st.sampled_from(['"', ",", "\n", ";", "\t", "https://a.example/1", "x"]), max_size=300))
def test_any_text_gives_rows_or_is_no_table(pieces: list[str]) -> None:
    with suppress(NotATable):
        rows("url,caption\n" + "".join(pieces))
        rows("".join(pieces))
