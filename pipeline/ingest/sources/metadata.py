"""Metadata of images: convert values of any type, under many names, to the few typed fields of a record.

The input is not trusted: values of an unexpected type are dropped, and sizes are bounded, so that a hostile crawl
cannot make its plan large.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from functools import lru_cache
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from pipeline.ingest.sources.hashtags import MAX_TAG_CHARS, hashtags_in, normal_form

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

_UNIT_OF = dict.fromkeys(range(12, 15), 1e3) | dict.fromkeys(range(15, 18), 1e6) | dict.fromkeys(range(18, 21), 1e9)
"""Number of units per second of a time since 1970, by its number of digits: from 1973 on, they tell the unit."""
_ZONE_HOURS = {
    "UTC": 0, "GMT": 0, "UT": 0, "Z": 0, "EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8,
    "PDT": -7, "WET": 0, "WEST": 1, "BST": 1, "CET": 1, "CEST": 2, "EET": 2, "EEST": 3, "MSK": 3, "JST": 9, "KST": 9,
}  # fmt: skip
"""Hours ahead of UTC of time zones with usual abbreviations."""
_ZONE_IN_BRACKETS = re.compile(r"(.+[+-]\d\d:?\d\d|.+Z)\[[\w/+-]+\]")
_BETWEEN_TAGS = re.compile(r"[\s,;|\[\]'\"#]+")

_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

# In order of preference; names are compared in lower case, with _ between words.
URL_NAMES = (
    "url", "image_url", "img_url", "display_url", "display_src", "src", "image_src", "img_src", "photo_url",
    "photo_image_url", "picture_url", "media_url", "file_url", "content_url", "download_url", "original_url",
    "large_url", "url_o", "url_l", "url_m", "image", "img", "photo", "picture", "link", "href", "uri", "thumbnail_url",
    "source_url",
)  # fmt: skip
CAPTION_NAMES = ("caption", "text", "description", "body", "alt", "alt_text", "alt_description", "title")
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
    captions: tuple[str, ...]
    """Columns that may hold the caption, in order of preference: the first that is not empty counts."""
    taken_at: str | None
    hashtags: str | None
    shortcode: str | None
    further: tuple[str, ...]
    """Names of all columns without a recognised meaning."""

    def metadata(self, row: Mapping[str, Any], source_url: str | None) -> Metadata:
        """Return the metadata in `row`; `source_url` is its address, which the caller has validated."""
        taken_at = parse_time(row.get(self.taken_at)) if self.taken_at else None
        texts = ((name, text) for name in self.captions if (text := text_or_none(row.get(name))) and text.strip())
        caption_name, caption = next(texts, (None, None))
        further = {name: row.get(name) for name in self.further if name != caption_name}
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
    found = [first(known) for known in (TAKEN_AT_NAMES, HASHTAG_NAMES, SHORTCODE_NAMES)]
    taken_at, tags, shortcode = (None if name == url else name for name in found)
    captions = tuple(by_name[name] for name in CAPTION_NAMES if name in by_name and by_name[name] != url)
    used = {url, taken_at, tags, shortcode}
    return ColumnRoles(url, captions, taken_at, tags, shortcode, tuple(name for name in names if name not in used))


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
    """Parse a time in any usual notation.

    These are seconds, milliseconds, microseconds or nanoseconds since 1970, ISO 8601, EXIF, e-mail (RFC 5322), the form
    of Twitter, and a date. Times without a time zone are taken as UTC. Returns None for anything else.
    """
    if isinstance(value, bool):
        return None
    try:
        if isinstance(value, str):
            value = _parse_time_text(value.strip())
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value / _UNIT_OF.get(len(f"{abs(value):.0f}"), 1), UTC)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if isinstance(value, date):
            return datetime.combine(value, time(), UTC)
    except (ValueError, OverflowError, OSError, TypeError):
        pass
    return None


def parse_hashtags(value: Any, caption: str | None) -> list[str]:
    """Return the hashtags in `value`, a list or a string, without #; if it has none, the hashtags in `caption`."""
    parts = (
        _BETWEEN_TAGS.split(value[:MAX_TEXT_CHARS]) if isinstance(value, str) else list_or_empty(value)[:MAX_HASHTAGS]
    )
    tags = [normal_form(tag.lstrip("#"))[:MAX_TAG_CHARS] for part in parts if (tag := text_or_none(part))]
    return [tag for tag in tags if tag][:MAX_HASHTAGS] or list(islice(hashtags_in(caption or ""), MAX_HASHTAGS))


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
    text, zone = _without_zone_name(text)
    for parse in _TIME_FORMATS:
        try:
            moment = parse(text)
        except (ValueError, TypeError, IndexError):
            continue
        return moment.replace(tzinfo=zone) if zone is not None and moment.tzinfo is None else moment
    raise ValueError("not a time")


def _without_zone_name(text: str) -> tuple[str, tzinfo | None]:
    """Return `text` without the name of a time zone at its end, and this zone."""
    if match := _ZONE_IN_BRACKETS.fullmatch(text):  # after the offset, which says the same
        return match[1], None
    start, _, name = text.rpartition(" ")
    if not start or not name[:1].isalpha():
        return text, None
    if name.upper() in _ZONE_HOURS:
        return start, timezone(timedelta(hours=_ZONE_HOURS[name.upper()]))
    try:
        return start, ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # KeyError for an unknown zone
        return text, None


_TIME_FORMATS: tuple[Callable[[str], datetime], ...] = (
    datetime.fromisoformat,
    lambda text: datetime.strptime(text, "%Y:%m:%d %H:%M:%S"),
    lambda text: datetime.strptime(text, "%a %b %d %H:%M:%S %z %Y"),
    lambda text: datetime.strptime(text, "%a %b %d %H:%M:%S %Y"),
    email.utils.parsedate_to_datetime,
)
"""Functions that parse a time; each raises an exception for other notations."""
