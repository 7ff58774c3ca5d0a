"""What crawls say about their images: values of any type, under many names, to a few typed ones.

Nothing is taken for granted: a value of another type than expected is left out, and what is kept has a bound, so that
a hostile crawl cannot make its plan large.
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

from pipeline.ingest.text import storable

MAX_TEXT_CHARS = 16_384
"""Of a caption or an address; seven times what Instagram allows. Longer ones are cut off there."""

MAX_EXTRA_CHARS = 16_384
"""Of all further columns of a record together, as JSON; what does not fit is left out."""

MAX_NESTING = 16
"""Of lists and objects in further columns; deeper ones are left out."""

MAX_NUMBER_CHARS = 24

MAX_HASHTAGS = MAX_ITEMS = 1_000
"""Of a list or an object; further ones are left out."""

HASHTAG = re.compile(r"#(\w{1,150})")
_BETWEEN_TAGS = re.compile(r"[\s,;|\[\]'\"#]+")

# By falling preference; names are compared in lower case, with _ for everything between words.
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
    """What a crawl says of one image: fields of CrawlRecord, under the same names."""

    shortcode: str | None = None
    caption: str | None = None
    taken_at: datetime | None = None
    hashtags: list[str] = field(default_factory=list)
    source_url: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Columns:
    """Which of the columns of a table, or keys of an object, means what."""

    url: str | None
    caption: str | None
    taken_at: str | None
    hashtags: str | None
    shortcode: str | None
    further: tuple[str, ...]

    def metadata(self, row: Mapping[str, Any], source_url: str | None) -> Metadata:
        """What `row` says; `source_url` is its address, once checked."""
        taken_at = moment(row.get(self.taken_at)) if self.taken_at else None
        caption = text(row.get(self.caption)) if self.caption else None
        further = {name: row.get(name) for name in self.further}
        if self.taken_at and taken_at is None:
            further[self.taken_at] = row.get(self.taken_at)
        return Metadata(
            shortcode=text(row.get(self.shortcode)) if self.shortcode else None,
            caption=caption,
            taken_at=taken_at,
            hashtags=hashtags(row.get(self.hashtags) if self.hashtags else None, caption),
            source_url=source_url,
            extra=bounded(further),
        )


@lru_cache(maxsize=256)
def columns(names: tuple[str, ...], url_column: str | None = None) -> Columns:
    """What columns of these `names` mean. `url_column` names the one with addresses, where it is not to be guessed."""
    by_name: dict[str, str] = {}
    for name in names:
        by_name.setdefault(re.sub(r"[\W_]+", "_", name.strip().lower()).strip("_"), name)

    def first(known: Sequence[str]) -> str | None:
        return next((by_name[name] for name in known if name in by_name), None)

    url = first(URL_NAMES) if url_column is None else next((name for name in names if name == url_column), None)
    found = [first(known) for known in (CAPTION_NAMES, TAKEN_AT_NAMES, HASHTAG_NAMES, SHORTCODE_NAMES)]
    caption, taken_at, tags, shortcode = (None if name == url else name for name in found)
    used = {url, caption, taken_at, tags, shortcode}
    return Columns(url, caption, taken_at, tags, shortcode, tuple(name for name in names if name not in used))


def parse_json(data: bytes) -> Any:
    """The JSON in `data`, with or without a mark. Raises ValueError for anything that is none, or nested deeply."""
    try:
        return json.loads(data.removeprefix(b"\xef\xbb\xbf"), parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def text(value: Any) -> str | None:
    """`value` as text that can be stored, None unless it is a text."""
    return storable(value[:MAX_TEXT_CHARS]) if isinstance(value, str) else None


def listed(value: Any) -> list[Any]:
    """`value` where it is a list, an empty one otherwise."""
    return value if isinstance(value, list) else []


def dig(value: Any, *path: str | int) -> Any:
    """The value at `path` inside nested JSON, None where there is no such path."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def moment(value: Any) -> datetime | None:
    """A time of any usual writing: seconds or milliseconds since 1970, ISO 8601, EXIF; UTC where it names no zone."""
    if isinstance(value, bool):
        return None
    try:
        if isinstance(value, str):
            value = _written_moment(value.strip())
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value / 1000 if abs(value) > 1e11 else value, UTC)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if isinstance(value, date):
            return datetime.combine(value, time(), UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def hashtags(value: Any, caption: str | None) -> list[str]:
    """The hashtags in `value`, a list or a text, without #; those in the `caption` where it holds none."""
    parts = _BETWEEN_TAGS.split(value[:MAX_TEXT_CHARS]) if isinstance(value, str) else listed(value)[:MAX_HASHTAGS]
    tags = [tag.lstrip("#")[:150] for part in parts if (tag := text(part))]
    return [tag for tag in tags if tag][:MAX_HASHTAGS] or HASHTAG.findall((caption or "").lower())[:MAX_HASHTAGS]


def bounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as JSON that can be stored: empty ones, what is nested deeply and what exceeds the bound left out."""
    kept: dict[str, Any] = {}
    room = MAX_EXTRA_CHARS
    for name, raw in values.items():
        value = None if raw == "" else _plain(raw, MAX_NESTING)
        if value is None:
            continue
        size = len(name) + _length(value)
        if size <= room:
            kept[storable(name)] = value
            room -= size
    return kept


def _plain(value: Any, nesting: int) -> Any:
    """`value` as bounded JSON; None for what cannot be stored."""
    plain: Any = None
    if value is None or isinstance(value, bool):
        plain = value
    elif isinstance(value, int):
        plain = value if abs(value) < 2**63 else None
    elif isinstance(value, float):
        plain = value if math.isfinite(value) else None
    elif isinstance(value, Mapping):
        if nesting:
            items = islice(value.items(), MAX_ITEMS)
            plain = {storable(str(name)[:200]): _plain(inner, nesting - 1) for name, inner in items}
    elif isinstance(value, list | tuple):
        plain = [_plain(inner, nesting - 1) for inner in value[:MAX_ITEMS]] if nesting else None
    elif not isinstance(value, bytes):  # texts; dates, decimals and what else a table may hold as they are written
        plain = storable(str(value)[:MAX_TEXT_CHARS])
    return plain


def _length(value: Any) -> int:
    """Of `value` as JSON, in characters, as nearly as a bound needs it."""
    if isinstance(value, str):
        return len(value)
    return len(json.dumps(value)) if isinstance(value, dict | list) else MAX_NUMBER_CHARS


def _whole_number(digits: str) -> int | float:
    """A whole number of the JSON; Python refuses to read very long ones, and none of those means anything here."""
    return int(digits) if len(digits) <= 20 else float(digits)


def _written_moment(written: str) -> datetime | float:
    if len(written) > 64:
        raise ValueError("too long for a time")
    try:
        if len(written) != 8:  # 20200913 is a day
            return float(written)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(written)
    except ValueError:
        return datetime.strptime(written, "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
