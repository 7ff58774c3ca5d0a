"""The lines of a text file of any encoding: UTF-8 and UTF-16 by their marks, older encodings by detection."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from charset_normalizer import from_bytes

from pipeline.ingest.sources.tables.lookahead import Lookahead
from pipeline.ingest.sources.tables.rows import BrokenRow, NotATable

MAX_LINE_CHARS = 2**20
"""Maximum length of a line in characters; longer ones are broken rows."""

HEAD_BYTES = 2**12
"""Number of bytes at the start of a file in which a mark of its encoding is looked for."""

SAMPLE_LINES = 1_000
"""Number of lines from which the encoding of a file is detected."""

LEGACY_ENCODINGS = (
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r", "mac_roman", "cp932", "euc_jp",
    "gb18030", "big5", "cp949",
)  # fmt: skip
"""Encodings that are looked for in files that are not Unicode."""

MIN_LEGACY_BYTES = 4
"""Minimum number of bytes beyond ASCII for which a table is refused if their encoding cannot be told; fewer ones only
break their lines."""

MAX_DISTANCE = 0.02
"""Maximum difference to the lowest `chaos` (a measure of charset-normalizer, from 0 to 1) of an encoding that is as
likely as the one with the lowest."""

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, and the codecs that consume them."""

_NOT_UTF8 = re.compile("[\udc80-\udcff]")

_NOT_WESTERN = re.compile(
    "[^\x00-\x7f\xa0-\xff\u2013-\u2026\u20ac\u0152\u0153]"
    "|[\xa2-\xaa\xac-\xaf\xb1-\xba\xbc-\xbe\xd0\xdd\xde\xf0\xfd\xfe]"
)
"""Characters of cp1252 that texts of Western Europe hardly have; other encodings have other letters in their place."""
_WORD = re.compile(r"[^\W\d_]+")

Line = str | BrokenRow
"""A line with its end; or the reason why it cannot be read."""


def text_lines(stream: BinaryIO, encoding: str | None = None) -> Iterator[Line]:
    """Yield the lines of `stream` with their ends, which may be those of any system; a BrokenRow for an unreadable one.

    Args:
        stream: buffered, at its start; errors of reading it are passed on after the lines before them.
        encoding: name of the encoding; by default, it is detected. Files without a mark are UTF-8. Where lines are not,
            and no line before them is UTF-8 beyond ASCII, the encoding is detected from these lines. Lines that are in
            no known encoding cannot be read.

    Raises NotATable where lines may be in several encodings.
    """
    stream, encoding, _ = _detected(stream, encoding)
    is_utf8 = encoding in {"utf-8", "utf-8-sig"}
    text = io.TextIOWrapper(stream, encoding, errors="surrogateescape" if is_utf8 else "replace", newline="")
    lines = _bounded(text)
    yield from _with_legacy(Lookahead(lines)) if is_utf8 else lines


def utf8_stream(stream: BinaryIO, encoding: str | None = None) -> tuple[BinaryIO, bytes]:
    """Return `stream`, a text file of any encoding, as UTF-8 without a mark; and its first byte that is no white space.

    Without `encoding`, the file is UTF-8 unless a mark or its zero bytes say otherwise.
    """
    stream, encoding, head = _detected(stream, encoding)
    if encoding == "utf-8-sig":
        stream.read(len(codecs.BOM_UTF8))
    elif encoding != "utf-8":
        text = io.TextIOWrapper(stream, encoding, errors="replace", newline="")
        stream = cast(BinaryIO, io.BufferedReader(cast(Any, _Encoded(text))))
    return stream, head.decode(encoding, "replace").lstrip()[:1].encode()


def _detected(stream: BinaryIO, encoding: str | None) -> tuple[BinaryIO, str, bytes]:
    """Return a stream with the content of `stream`, its `encoding`, and its first bytes."""
    head, error = _head(stream)
    resumed = cast(BinaryIO, io.BufferedReader(_Resumed(head, error, stream)))
    return resumed, encoding or encoding_of(head), head


def _bounded(text: io.TextIOWrapper) -> Iterator[Line]:
    """Yield the lines of `text`; lines above MAX_LINE_CHARS are never in memory as a whole."""
    while line := text.readline(MAX_LINE_CHARS):
        if len(line) < MAX_LINE_CHARS or line.endswith(("\n", "\r")):
            yield line
            continue
        while (rest := text.readline(MAX_LINE_CHARS)) and not rest.endswith(("\n", "\r")):
            pass
        yield BrokenRow(f"a line of more than {MAX_LINE_CHARS:,} characters")


def _with_legacy(lines: Lookahead[Line]) -> Iterator[Line]:
    """Yield `lines`, in which bytes that are not UTF-8 are lone surrogates, decoded."""
    is_utf8, legacy = False, None
    for line in lines:
        if isinstance(line, BrokenRow) or line.isascii():
            yield line
        elif not _NOT_UTF8.search(line):
            is_utf8 = True
            yield line if legacy is None else _decoded(line, legacy)
        elif is_utf8:
            yield BrokenRow("not valid UTF-8, unlike the lines before it")
        else:
            if legacy is None:
                sample = [line, *lines.ahead(SAMPLE_LINES)]
                legacy = _legacy_encoding([_bytes(part) for part in sample if isinstance(part, str)])
            yield _decoded(line, legacy)


def _bytes(line: str) -> bytes:
    return line.encode("utf-8", "surrogateescape")


def _decoded(line: str, encoding: str) -> Line:
    if not encoding:
        return BrokenRow("neither UTF-8 nor in another known encoding; convert the file to UTF-8")
    try:
        return _bytes(line).decode(encoding)
    except UnicodeDecodeError:
        return BrokenRow(f"neither UTF-8 nor {encoding}")


def decode_text(data: bytes) -> str:
    """Return a text of any encoding. Bytes that are in no known encoding become replacement characters."""
    encoding = encoding_of(data[:HEAD_BYTES])
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        likely = likely_encodings(data) if encoding == "utf-8" else []
    return data.decode(likely[0] if likely else encoding, "replace")


def likely_encodings(sample: bytes) -> list[str]:
    """Return the encodings that a `sample`, which is not UTF-8, may have; the most frequent one first."""
    matches = from_bytes(sample[: 2**18], cp_isolation=list(LEGACY_ENCODINGS))
    likely = [match for match in matches if match.chaos <= min(m.chaos for m in matches) + MAX_DISTANCE]
    coherent = [match for match in likely if match.coherence >= max(m.coherence for m in likely)]
    return sorted({match.encoding for match in coherent}, key=LEGACY_ENCODINGS.index)


def _legacy_encoding(lines: list[bytes]) -> str:
    """Return the encoding of `lines`, of which the first is not UTF-8; empty if it is not recognised."""
    sample = b"".join(line for line in lines if not line.isascii())
    names = likely_encodings(sample)
    if len(names) < 2:
        return names[0] if names else ""
    # Short texts in cp1252, the most frequent of these encodings, are as likely in others.
    if _is_western(sample):
        return "cp1252"
    if len(others := [name for name in names if name != "cp1252"]) == 1:
        return others[0]
    if sum(byte > 0x7F for byte in sample) < MIN_LEGACY_BYTES:
        return ""
    raise NotATable(
        f"not UTF-8, and its encoding may be {' or '.join(names)}; convert it to UTF-8, or name its encoding, such as "
        f"--set ingest.encoding={names[0]}"
    )


def _is_western(sample: bytes) -> bool:
    """Return whether `sample` as cp1252 has only letters of Western Europe, and no more accents than its languages."""
    text = sample.decode("cp1252", "replace")
    words = [word for word in _WORD.findall(text) if not word.isascii()]
    accented = sum(not character.isascii() for word in words for character in word)
    return not _NOT_WESTERN.search(text) and 2 * accented <= sum(map(len, words))


def encoding_of(head: bytes) -> str:
    """Return the encoding of a file that begins with `head`: by its mark, or by its zero bytes; else UTF-8."""
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding
    pairs = len(head) // 2
    for name, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        if pairs and zeros.count(0) > 0.4 * pairs and head.count(0) < 1.2 * zeros.count(0):
            return name
    return "utf-8"


def _head(stream: BinaryIO) -> tuple[bytes, Exception | None]:
    """Return the first bytes of `stream`, and the error that ended them, if any."""
    head = b""
    try:
        while len(head) < HEAD_BYTES and (part := cast(Any, stream).read1(HEAD_BYTES)):
            head += part
    except Exception as error:
        return head, error
    return head, None


class _Resumed(io.RawIOBase):
    """A stream of which the first bytes were read already."""

    def __init__(self, head: bytes, error: Exception | None, stream: BinaryIO) -> None:
        self._head, self._error, self._stream = head, error, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._head[: len(buffer)]
        if part:
            self._head = self._head[len(part) :]
        elif self._error is not None:
            raise self._error
        else:
            part = cast(Any, self._stream).read1(len(buffer))
        buffer[: len(part)] = part
        return len(part)


class _Encoded(io.RawIOBase):
    """A text as UTF-8."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._text.read(len(buffer) // 4).encode()
        buffer[: len(data)] = data
        return len(data)
