"""Metadata of images: convert values of any type, under many names, to the few typed fields of a record.

The input is not trusted: values of an unexpected type are dropped, and sizes are bounded, so that a hostile crawl
cannot make its plan large.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from functools import lru_cache
from itertools import islice
from typing import Any

MAX_TEXT_CHARS = 16_384
"""Maximum length of a caption or an address in characters, seven times what Instagram allows; the rest is cut off."""

MAX_EXTRA_CHARS = 16_384
"""Maximum length of all further columns of a record together, as JSON, in characters; further ones are dropped."""

MAX_NESTING = 16
"""Maximum nesting of lists and objects in further columns; deeper ones are dropped."""

MAX_NUMBER_CHARS = 24
"""Upper bound on the length of a number in JSON, in characters."""

MAX_HASHTAGS = MAX_ITEMS = 1_000
"""Maximum number of hashtags of a record, and of items of a list or an object; further ones are dropped."""

HASHTAG = re.compile(r"#(\w{1,150})")
_BETWEEN_TAGS = re.compile(r"[\s,;|\[\]'\"#]+")

_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

# In order of preference; names are compared in lower case, with _ between words.
URL_NAMES = (
    "url", "image_url", "img_url", "display_url", "display_src", "src", "image_src", "img_src", "photo_url",
    "photo_image_url", "picture_url", "media_url", "file_url", "content_url", "download_url", "original_url",
    "large_url", "url_o", "url_l", "url_m", "image", "img", "photo", "picture", "link", "href", "uri", "thumbnail_url",
    "source_url",
)  # fmt: skip
CAPTION_NAMES = ("caption", "text", "description", "alt", "alt_text", "title")
TAKEN_AT_NAMES = (
    "taken_at", "taken_at_timestamp", "timestamp", "datetime", "date", "date_taken", "datetaken", "created_at",
    "created_time", "create_time", "published_at", "time",
)  # fmt: skip
HASHTAG_NAMES = ("hashtags", "hashtag", "tags", "keywords")
SHORTCODE_NAMES = ("post_shortcode", "shortcode", "short_code", "code")


@dataclass(frozen=True)
class Metadata:
    """Metadata of one image: fields of CrawlRecord, under the same names."""

    shortcode: str | None = None
    caption: str | None = None
    taken_at: datetime | None = None
    hashtags: list[str] = field(default_factory=list)
    source_url: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ColumnRoles:
    """Names of the columns of a table, or of the keys of an object, by the field of a record that they hold."""

    url: str | None
    caption: str | None
    taken_at: str | None
    hashtags: str | None
    shortcode: str | None
    further: tuple[str, ...]
    """Names of all columns without a recognised meaning."""

    def metadata(self, row: Mapping[str, Any], source_url: str | None) -> Metadata:
        """Return the metadata in `row`; `source_url` is its address, which the caller has validated."""
        taken_at = parse_time(row.get(self.taken_at)) if self.taken_at else None
        caption = text_or_none(row.get(self.caption)) if self.caption else None
        further = {name: row.get(name) for name in self.further}
        if self.taken_at and taken_at is None:
            further[self.taken_at] = row.get(self.taken_at)
        return Metadata(
            shortcode=text_or_none(row.get(self.shortcode)) if self.shortcode else None,
            caption=caption,
            taken_at=taken_at,
            hashtags=parse_hashtags(row.get(self.hashtags) if self.hashtags else None, caption),
            source_url=source_url,
            extra=storable_extra(further),
        )


def words_of(name: str) -> list[str]:
    """Return the words of a column's name in lower case: those of ``displayUrl`` are display and url."""
    return [word for word in re.split(r"[\W_]+", _WORD_STARTS.sub("_", name).lower()) if word]


@lru_cache(maxsize=256)
def recognise_columns(names: tuple[str, ...], url_column: str | None = None) -> ColumnRoles:
    """Recognise the roles of columns by their `names`; `url_column` names the column of addresses explicitly."""
    by_name: dict[str, str] = {}
    for name in names:
        by_name.setdefault("_".join(words_of(name)), name)

    def first(known: Sequence[str]) -> str | None:
        return next((by_name[name] for name in known if name in by_name), None)

    url = first(URL_NAMES) if url_column is None else next((name for name in names if name == url_column), None)
    found = [first(known) for known in (CAPTION_NAMES, TAKEN_AT_NAMES, HASHTAG_NAMES, SHORTCODE_NAMES)]
    caption, taken_at, tags, shortcode = (None if name == url else name for name in found)
    used = {url, caption, taken_at, tags, shortcode}
    return ColumnRoles(url, caption, taken_at, tags, shortcode, tuple(name for name in names if name not in used))


def parse_json(data: bytes) -> Any:
    """Parse the JSON in `data`, with or without a byte order mark.

    Raises ValueError where it is invalid or nested too deeply.
    """
    try:
        return json.loads(data.removeprefix(b"\xef\xbb\xbf"), parse_int=_parse_integer)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def storable(text: str) -> str:
    """Return `text` with backslash escapes for lone surrogates, which UTF-8 cannot hold.

    In file names, they stand for bytes that are not valid UTF-8.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def text_or_none(value: Any) -> str | None:
    """Return `value` as storable text of at most MAX_TEXT_CHARS characters; None unless it is a string."""
    return storable(value[:MAX_TEXT_CHARS]) if isinstance(value, str) else None


def list_or_empty(value: Any) -> list[Any]:
    """Return `value` if it is a list, otherwise an empty list."""
    return value if isinstance(value, list) else []


def value_at(value: Any, *path: str | int) -> Any:
    """Return the element at `path` (keys and indices) of the nested JSON `value`; None if the path does not exist."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def parse_time(value: Any) -> datetime | None:
    """Parse a time in any usual notation: seconds or milliseconds since 1970, ISO 8601, EXIF, or a date.

    Times without a time zone are taken as UTC. Returns None for anything else.
    """
    if isinstance(value, bool):
        return None
    try:
        if isinstance(value, str):
            value = _parse_time_text(value.strip())
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value / 1000 if abs(value) > 1e11 else value, UTC)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if isinstance(value, date):
            return datetime.combine(value, time(), UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def parse_hashtags(value: Any, caption: str | None) -> list[str]:
    """Return the hashtags in `value`, a list or a string, without #; if it has none, the hashtags in `caption`."""
    parts = (
        _BETWEEN_TAGS.split(value[:MAX_TEXT_CHARS]) if isinstance(value, str) else list_or_empty(value)[:MAX_HASHTAGS]
    )
    tags = [tag.lstrip("#")[:150] for part in parts if (tag := text_or_none(part))]
    return [tag for tag in tags if tag][:MAX_HASHTAGS] or HASHTAG.findall((caption or "").lower())[:MAX_HASHTAGS]


def storable_extra(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` as storable JSON of at most MAX_EXTRA_CHARS characters.

    Empty values, those that are nested too deeply, and those that do not fit are dropped.
    """
    kept: dict[str, Any] = {}
    remaining_chars = MAX_EXTRA_CHARS
    for name, raw in values.items():
        value = None if raw == "" else _storable_json(raw, MAX_NESTING)
        if value is None:
            continue
        size = len(name) + _json_length(value)
        if size <= remaining_chars:
            kept[storable(name)] = value
            remaining_chars -= size
    return kept


def _storable_json(value: Any, nesting: int) -> Any:
    """Return `value` as JSON of at most `nesting` levels; None if it cannot be stored."""
    converted: Any = None
    if value is None or isinstance(value, bool):
        converted = value
    elif isinstance(value, int):
        converted = value if abs(value) < 2**63 else None
    elif isinstance(value, float):
        converted = value if math.isfinite(value) else None
    elif isinstance(value, Mapping):
        if nesting:
            items = islice(value.items(), MAX_ITEMS)
            converted = {storable(str(name)[:200]): _storable_json(inner, nesting - 1) for name, inner in items}
    elif isinstance(value, list | tuple):
        converted = [_storable_json(inner, nesting - 1) for inner in value[:MAX_ITEMS]] if nesting else None
    elif not isinstance(value, bytes):  # strings, and other types that a table may hold, such as dates and decimals
        converted = storable(str(value)[:MAX_TEXT_CHARS])
    return converted


def _json_length(value: Any) -> int:
    """Return the approximate length of `value` as JSON, in characters."""
    if isinstance(value, str):
        return len(value)
    return len(json.dumps(value)) if isinstance(value, dict | list) else MAX_NUMBER_CHARS


def _parse_integer(digits: str) -> int | float:
    """Parse an integer in JSON; very long ones, which Python refuses to parse as integers, become floats."""
    return int(digits) if len(digits) <= 20 else float(digits)


def _parse_time_text(text: str) -> datetime | float:
    if len(text) > 64:
        raise ValueError("too long for a time")
    try:
        if len(text) != 8:  # eight digits, such as 20200913, are a date
            return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return datetime.strptime(text, "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
