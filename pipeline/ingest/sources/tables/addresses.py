"""Find the addresses of images in the rows of a table: which column holds them, and each address in a cell.

Tables of posts have several columns of addresses: pages, thumbnails, videos, avatars and the image itself. The column
is chosen by what it holds and by its name, because a column called url is as often the page of an image as the image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from pipeline.ingest.sources.metadata import MAX_ITEMS, MAX_TEXT_CHARS, storable, words_of

# The words of a column's name, in order of preference within each group.
IMAGE_WORDS = ("image", "images", "img", "imgs", "display", "src", "original", "full", "large")
"""Words of columns that hold addresses of image files."""
FILE_WORDS = ("photo", "photos", "picture", "pictures", "pic", "media", "file", "files", "content", "download", "asset")
"""Words of columns that may hold addresses of image files or of pages that show them."""
ADDRESS_WORDS = ("url", "urls", "uri")
"""Words of columns whose name only says that they hold addresses."""
SMALL_WORDS = frozenset({"thumb", "thumbs", "thumbnail", "thumbnails", "preview", "small", "tiny"})
"""Words of columns that hold small versions of images."""
PAGE_WORDS = frozenset(
    {"page", "permalink", "post", "source", "collected", "input", "web", "website", "site", "html", "link", "href"}
)
"""Last words of columns that hold addresses of pages."""
OTHER_WORDS = frozenset(
    {
        "author", "user", "owner", "account", "profile", "avatar", "icon", "logo", "video", "videos", "audio", "api",
        "license", "licence",
    }
)  # fmt: skip
"""Words of columns that hold addresses of something else."""

IMAGE_SUFFIX = re.compile(r"[^?#]*\.(jpe?g|png|webp|gif|avif|heic|heif|tiff?|bmp|jp2)(?=$|[?#!:&@;/])", re.IGNORECASE)
"""An address whose path has the suffix of an image file."""

ADDRESS_KEYS = ("url", "src", "contentUrl", "uri", "href")
"""Keys of an address in an object that describes an image."""

# The pattern does not use IGNORECASE, which makes its long part several times slower.
WEB_ADDRESS = re.compile(r"(?:[hH][tT][tT][pP][sS]?:)?//[^/?#\s\x00-\x1f\x7f]+[^\x00-\x1f\x7f]*")
_QUERY = re.compile(r"[?#]")
_ADDRESS = re.compile(r"\s*(?:https?:)?//\S", re.IGNORECASE)
_BETWEEN_ADDRESSES = re.compile(r"""[\s,;|"']+(?=https?://)""", re.IGNORECASE)
_LIST = re.compile(r"""\s*\[\s*["'](.*)["']\s*\]\s*""", re.DOTALL)
_NUMBERED = re.compile(r"(.+?)(?:/|\.|\[)(\d{1,4})\]?")


def addresses_in(value: Any) -> list[str]:
    """Return the addresses in a cell: a text with one or several of them, an object, or a list; empty if it has none.

    Several addresses in a text are separated by spaces, commas, semicolons or bars; a list may be written as JSON.
    """
    if isinstance(value, list):
        texts = [text for item in value[:MAX_ITEMS] if isinstance(text := _address_of(item), str)]
        return [address for text in texts for address in addresses_in(text)]
    value = _address_of(value)
    if not isinstance(value, str) or len(value) > MAX_ITEMS * MAX_TEXT_CHARS:
        return []
    if match := _LIST.fullmatch(value):
        value = match[1]
    if not _ADDRESS.match(value):
        return []
    return [part.strip().strip(",;|\"'") for part in _BETWEEN_ADDRESSES.split(value.strip())]


def name_in(url: str) -> str:
    """Return the last part of the path of `url`; empty if it has none."""
    path = _QUERY.split(url.partition("//")[2], maxsplit=1)[0].partition("/")[2]
    name = path.rpartition("/")[2]
    return storable(unquote(name)[:255]) if "%" in name else name[:255]


def _address_of(value: Any) -> Any:
    """Return the address in an object such as ``{"url": …}``; another value is returned unchanged."""
    if not isinstance(value, dict):
        return value
    return next((value[key] for key in ADDRESS_KEYS if isinstance(value.get(key), str)), None)


def with_lists(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `row` with one column ``images``, a list, instead of ``images/0``, ``images/1`` and so on."""
    groups = _numbered_columns(tuple(row))
    if not groups:
        return row
    numbered = {name for names in groups.values() for name in names}
    single = {name: value for name, value in row.items() if name not in numbered}
    return single | {group: [row[n] for n in names if row[n] not in (None, "")] for group, names in groups.items()}


@lru_cache(maxsize=64)
def _numbered_columns(names: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the columns of each list that is spread over several numbered columns, by the name of the list."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        if (match := _NUMBERED.fullmatch(name)) and match[1] not in names:
            groups.setdefault(match[1], []).append((int(match[2]), name))
    return {group: [name for _, name in sorted(columns)] for group, columns in groups.items()}


def address_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the columns of addresses in `rows`, the one with the images first.

    A column holds addresses if at least half of its cells that are not empty begin with one. Columns whose names say
    that they hold images come first; then those whose addresses have the suffix of an image file; then the others, by
    their names.
    """
    found = []
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [cell for row in rows if (cell := row.get(name)) not in (None, "", [])]
        held = [addresses for cell in cells if (addresses := addresses_in(cell))]
        if held and 2 * len(held) >= len(cells):
            files = sum(IMAGE_SUFFIX.match(addresses[0]) is not None for addresses in held)
            found.append((_rank(name, is_file=2 * files >= len(held)), name))
    return [name for _, name in sorted(found, key=lambda pair: pair[0])]


def _rank(name: str, is_file: bool) -> tuple[int, ...]:
    """Return the rank of a column of addresses by its name, and by whether they have suffixes of image files."""
    words = words_of(name)
    subject = [word for word in words if word not in ADDRESS_WORDS]
    is_page, is_small = bool(subject and subject[-1] in PAGE_WORDS), bool(SMALL_WORDS & set(words))
    is_other = bool(OTHER_WORDS & set(words))
    kinds = (IMAGE_WORDS, FILE_WORDS, ADDRESS_WORDS)
    kind, place = next(
        ((i, kind.index(word)) for i, kind in enumerate(kinds) for word in words if word in kind), (len(kinds), 0)
    )
    is_image = kind == 0 and not (is_page or is_small or is_other)
    return (not is_image, is_other, not is_file, is_page, is_small, kind, place, len(words))
