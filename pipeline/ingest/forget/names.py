"""The list of what a collection must forget, and which records and rows are of it.

The list outlives the images, so it says nothing of them: it has ids and hashes, no address and no caption. An image
has several names: its id, the hash of its file, the hashes of its addresses. Each of them keeps it out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError
from pipeline.ingest.download.request import without_credentials
from pipeline.ingest.rejection import RejectReason
from pipeline.ingest.repeats.dedup import IMAGE_ID_DIGITS
from pipeline.paths import forgotten_of
from pipeline.storage import Storage, read_table, write_table

FORGOTTEN: RejectReason = "forgotten"
FORGOTTEN_DETAIL = "on the collection's list of what is to be forgotten"

FORGOTTEN_SCHEMA = pa.schema(
    [
        pa.field(
            "name",
            pa.string(),
            metadata={
                "doc": "id of an image, or SHA-256 of a file or of an address without user and password; hexadecimal"
            },
        )
    ]
)
"""``forgotten.parquet``."""

Names = np.ndarray[Any, np.dtype[np.bytes_]]
"""S64, sorted: all tasks of a node share one copy."""
Mask = np.ndarray[Any, np.dtype[np.bool_]]

HASH = re.compile(rf"[0-9a-f]{{{IMAGE_ID_DIGITS}}}|[0-9a-f]{{64}}", re.IGNORECASE)
ADDRESS = re.compile(r"(https?|s3|file)://.+|/.+", re.IGNORECASE)

LEFT = {
    "status": "rejected",
    "reason": FORGOTTEN,
    "detail": FORGOTTEN_DETAIL,
    "problem": FORGOTTEN,
    "problem_detail": FORGOTTEN_DETAIL,
}
"""What the columns of a row or of a record of the plan say once it is forgotten, next to its place in the plan."""


def names_from(names: Iterable[str]) -> Names:
    """`names` as a list that can be searched."""
    return np.unique(np.array(list(names), "S64"))


NO_NAMES = names_from([])


def read_entries(file: Path) -> dict[str, int]:
    """The names in the text `file`, each with the first line that has it.

    A line is an image id, the SHA-256 of a file, or an address as ``source_uri`` or ``source_url`` has it. Empty lines
    and those that begin with ``# `` say nothing.

    Raises ConfigError where the file cannot be read, a line is none of these, or nothing is named.
    """
    names: dict[str, int] = {}
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--forget {file}: {getattr(error, 'strerror', None) or error}") from error
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry or entry == "#" or entry.startswith("# "):
            continue
        if HASH.fullmatch(entry):
            names.setdefault(entry.lower(), number)
        elif ADDRESS.fullmatch(entry):
            names.setdefault(name_of_address(entry), number)
        else:
            raise ConfigError(
                f"--forget {file}, line {number}: expected an image id ({IMAGE_ID_DIGITS} hexadecimal digits), the "
                "SHA-256 of a file (64 digits), an http://, https://, s3:// or file:// address or an absolute path"
            )
    if not names:
        raise ConfigError(f"--forget {file}: names nothing")
    return names


def read_forgotten(storage: Storage, collection: str) -> Names:
    """All names that `collection` must forget."""
    key = forgotten_of(collection)
    return names_from(read_table(storage, key)["name"].to_pylist()) if storage.exists(key) else NO_NAMES


def write_forgotten(storage: Storage, collection: str, names: Names) -> None:
    """Publish `names` as all that `collection` must forget."""
    write_table(storage, forgotten_of(collection), pa.table([names.astype("U64")], schema=FORGOTTEN_SCHEMA))


def name_of_address(address: str) -> str:
    """The name of what lies at `address`: its hash, without user and password."""
    return hashlib.sha256(without_credentials(address).encode()).hexdigest()


def is_forgotten(names: Names, sha256: str, image_id: str) -> bool:
    """Whether the content `sha256`, which would become the image `image_id`, is among `names`."""
    return bool(_listed(names, [*_names_of_content(sha256), image_id]).any())


def are_forgotten(rows: pa.Table, names: Names) -> Mask:
    """Which of N `rows` (N,) are of something in `names`, by whichever columns they have that could tell."""
    found = np.zeros(rows.num_rows, bool)
    pairs = list(_names(rows)) if len(names) else []
    places = np.array([place for place, _ in pairs], int)
    found[places[_listed(names, [name for _, name in pairs])]] = True
    return found


def names_in(rows: pa.Table) -> set[str]:
    """All names that `rows` have in whichever columns could hold one."""
    return {name for _, name in _names(rows)}


def listed(names: Names, asked: Iterable[str]) -> set[str]:
    """Those of `asked` that are among `names`."""
    found = list(asked)
    return set(np.array(found, object)[_listed(names, found)])


def cleared(rows: pa.Table, forgotten: Mask) -> pa.Table:
    """`rows`, or records of a plan, with nothing but their place and `LEFT` in those that are `forgotten`."""
    for place, field in enumerate(rows.schema) if forgotten.any() else ():
        if field.name != "record":
            left = pa.scalar(LEFT.get(field.name), field.type)
            rows = rows.set_column(place, field, pc.if_else(pa.array(forgotten), left, rows[field.name]))
    return rows


def _names_of_content(sha256: str) -> list[str]:
    return [sha256, sha256[:IMAGE_ID_DIGITS]]


NAMES_IN: Mapping[str, Callable[[str], list[str]]] = {
    "image_id": lambda image_id: [image_id],
    "duplicate_of": lambda image_id: [image_id],
    "sha256": _names_of_content,
    "source_uri": lambda address: [name_of_address(address)],
    "source_url": lambda address: [name_of_address(address)],
}
"""Columns of rows, records and images whose values are names of an image or have some."""


def _names(rows: pa.Table) -> Iterator[tuple[int, str]]:
    """Places of `rows` and the names that are there."""
    for column, names_of in NAMES_IN.items():
        for place, value in enumerate(rows[column].to_pylist() if column in rows.column_names else ()):
            if value is not None:
                yield from ((place, name) for name in names_of(value))


def _listed(names: Names, asked: Sequence[str]) -> Mask:
    """Which of `asked` are among `names`."""
    if not len(names):
        return np.zeros(len(asked), bool)
    values = np.array(asked, "S64")
    return np.asarray(names[np.searchsorted(names, values) % len(names)] == values)
