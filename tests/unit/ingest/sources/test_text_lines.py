from __future__ import annotations

import codecs
import io
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.sources.tables import text_lines as module
from pipeline.ingest.sources.tables.rows import BrokenRow, NotATable
from pipeline.ingest.sources.tables.text_lines import text_lines
from tests.support.fuzzing import fuzzed


def lines(data: bytes, encoding: str | None = None) -> list[str | BrokenRow]:
    return list(text_lines(io.BytesIO(data), encoding))


TEXT = "url,caption\nhttp://a.example/1,Grüße aus Köln – „schön“\n"
MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("encoding", MARKS)
def test_a_mark_names_the_encoding(encoding: str) -> None:
    assert "".join(map(str, lines(MARKS[encoding] + TEXT.encode(encoding)))) == TEXT


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_without_a_mark_the_bytes_tell(encoding: str) -> None:
    assert "".join(map(str, lines(TEXT.encode(encoding)))) == TEXT


@pytest.mark.parametrize(
    ("encoding", "caption"),
    [
        ("cp1252", "Schöne Grüße aus München – Café à la crème"),
        ("latin-1", "Ein schöner Tag, déjà vu"),
        ("cp1252", "Schöne; Grüße"),
        ("cp1252", "señor – “sí”, 5 €"),
        ("cp1252", "Bär"),
        ("cp1252", "Århus, blåbær, smørrebrød"),
        ("cp1250", "Kraków łódź, pięć"),
        ("cp1250", "Zażółć gęślą jaźń w Krakowie, Łódź jest piękna"),
        ("cp1251", "Красная площадь в Москве зимой, очень красивая"),
        ("shift_jis", "京都の清水寺で撮った写真です"),
        ("euc_kr", "서울의 아름다운 경복궁 사진"),
    ],
)
def test_an_older_encoding_is_detected(encoding: str, caption: str) -> None:
    text = f"url,caption\nhttp://a.example/1,plain\nhttp://a.example/2,{caption}\n"
    assert "".join(map(str, lines(text.encode(encoding)))) == text


def test_an_encoding_that_cannot_be_told_is_refused_and_can_be_named() -> None:
    data = "url,caption\nhttp://a.example/1,Η Ακρόπολη των Αθηνών\n".encode("cp1253")
    with pytest.raises(NotATable, match=r"may be .*cp1253.*convert it to UTF-8.*--set ingest\.encoding="):
        lines(data)
    assert lines(data, "cp1253")[1] == "http://a.example/1,Η Ακρόπολη των Αθηνών\n"


def test_a_line_that_is_not_utf8_in_a_file_that_is_breaks_alone() -> None:
    first, second, third = lines("é\n".encode() + b"caf\xe9\n" + "ü\n".encode())
    assert (first, third) == ("é\n", "ü\n")
    assert second == BrokenRow("not valid UTF-8, unlike the lines before it")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_on_any_system(end: str) -> None:
    assert lines(f"a{end}{end}b\u2028c".encode()) == [f"a{end}", end, "b\u2028c"]


def test_a_line_that_is_too_long_breaks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE_CHARS", 10)
    first, long, last = lines(b"a\n" + b"x" * 1000 + b"\nb")
    assert (first, last) == ("a\n", "b")
    assert isinstance(long, BrokenRow)


class Failing(io.RawIOBase):
    """A stream that fails after `data`, as a damaged gzip file does."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        if count := self._data.readinto(buffer):
            return count
        raise EOFError("cut off")


@pytest.mark.parametrize("size", [5, 200, 5_000, 50_000])
def test_the_lines_before_an_error_of_the_stream_come_first(size: int) -> None:
    found = []
    with pytest.raises(EOFError, match="cut off"):
        for line in text_lines(cast(BinaryIO, io.BufferedReader(cast(Any, Failing(b"a line\n" * size))))):
            found.append(line)
    assert found == ["a line\n"] * size


@pytest.mark.fuzz
@fuzzed(200)
@given(st.binary(max_size=200), st.sampled_from([b"", *MARKS.values()]))
def test_any_bytes_are_lines_or_refused(data: bytes, mark: bytes) -> None:
    try:
        found = lines(mark + data)
    except NotATable:
        return
    assert not any(isinstance(line, str) and not line.isascii() and "\udc80" <= max(line) <= "\udcff" for line in found)
