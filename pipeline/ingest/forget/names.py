"""The list of images that a collection must forget, and the search for records and rows that match it.

The list outlives the images, so it must not describe them: it holds ids and hashes, but no addresses or captions. An
image has several names: its id, the hash of its file, and the hashes of its addresses. Each of them keeps the image out
of the collection.
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
from pipeline.ingest.rejection import RejectReason
from pipeline.ingest.repeats.dedup import IMAGE_ID_DIGITS
from pipeline.masking import mask
from pipeline.paths import forgotten_list, takedown_marker
from pipeline.storage import Storage, read_table, write_table

FORGOTTEN: RejectReason = "forgotten"
FORGOTTEN_DETAIL = "the image was removed on request (--forget)"

FORGOTTEN_SCHEMA = pa.schema(
    [
        pa.field(
            "name",
            pa.string(),
            metadata={"doc": "id of an image, or SHA-256 of a file or of an address without its secrets; hexadecimal"},
        )
    ]
)
"""Schema of ``forgotten.parquet``, the list of names."""

Names = np.ndarray[Any, np.dtype[np.bytes_]]
"""Names of forgotten images (N,), S64, sorted. As an array, all tasks of a node share one copy."""

Mask = np.ndarray[Any, np.dtype[np.bool_]]

ID_OR_HASH = re.compile(rf"[0-9a-f]{{{IMAGE_ID_DIGITS}}}|[0-9a-f]{{64}}", re.IGNORECASE)
ADDRESS = re.compile(r"(https?|s3|file)://.+|/.+", re.IGNORECASE)

CLEARED_VALUES = {
    "status": "rejected",
    "reason": FORGOTTEN,
    "detail": FORGOTTEN_DETAIL,
    "problem": FORGOTTEN,
    "problem_detail": FORGOTTEN_DETAIL,
}
"""Values of the columns of a forgotten row, or of a forgotten record of the plan. All other columns are null, except
for its position (``record``)."""


def names_from(names: Iterable[str]) -> Names:
    """Sort `names`, without repetitions, into an array that can be searched."""
    return np.unique(np.array(list(names), "S64"))


NO_NAMES = names_from([])
"""The empty list of names."""


def read_entries(file: Path) -> dict[str, int]:
    """Read the names in the text `file`, each with the number of the first line that has it.

    A line is an image id, the SHA-256 of a file, or an address as in ``source_uri`` or ``source_url``. Empty lines and
    lines that begin with ``# `` are ignored.

    Raises ConfigError if the file cannot be read, a line is none of these, or the file has no names.
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
        if ID_OR_HASH.fullmatch(entry):
            names.setdefault(entry.lower(), number)
        elif ADDRESS.fullmatch(entry):
            names.setdefault(name_of_address(entry), number)
        else:
            raise ConfigError(
                f"--forget {file}, line {number}: expected an image id ({IMAGE_ID_DIGITS} hexadecimal digits), the "
                "SHA-256 of a file (64 digits), an http://, https://, s3:// or file:// address, or an absolute path"
            )
    if not names:
        raise ConfigError(f"--forget {file}: the file names no image; write one id, SHA-256 or address per line")
    return names


def read_forgotten(storage: Storage, collection: str) -> Names:
    """Read the names of all images that `collection` must forget."""
    key = forgotten_list(collection)
    return names_from(read_table(storage, key)["name"].to_pylist()) if storage.exists(key) else NO_NAMES


def check_no_takedown(storage: Storage, collection: str) -> None:
    """Raise ConfigError if a takedown in `collection` is running or was interrupted."""
    if storage.exists(takedown_marker(collection)):
        raise ConfigError(
            f"collection {collection!r}: --forget is running or was interrupted, so images that must be removed may "
            "still exist; run --forget again first, with the same file or another one"
        )


def write_forgotten(storage: Storage, collection: str, names: Names) -> None:
    """Publish `names` as the complete list of what `collection` must forget."""
    write_table(storage, forgotten_list(collection), pa.table([names.astype("U64")], schema=FORGOTTEN_SCHEMA))


def name_of_address(address: str) -> str:
    """Return the name of the image at `address`: the hash of the address without its secrets."""
    return hashlib.sha256(mask(address).encode()).hexdigest()


def is_forgotten(names: Names, sha256: str, image_id: str) -> bool:
    """Whether `names` has the file with the hash `sha256`, or the image `image_id` that it would become."""
    return bool(_listed(names, [*_names_of_content(sha256), image_id]).any())


def are_forgotten(rows: pa.Table, names: Names) -> Mask:
    """Return a mask (N,) of the N `rows` that match any of `names` in any column of NAMES_BY_COLUMN that they have."""
    found = np.zeros(rows.num_rows, bool)
    pairs = list(_names(rows)) if len(names) else []
    indices = np.array([index for index, _ in pairs], int)
    found[indices[_listed(names, [name for _, name in pairs])]] = True
    return found


def names_in(rows: pa.Table) -> set[str]:
    """Return all names in the columns of `rows` that can hold names (NAMES_BY_COLUMN)."""
    return {name for _, name in _names(rows)}


def listed(names: Names, candidates: Iterable[str]) -> set[str]:
    """Return those of `candidates` that are among `names`."""
    values = list(candidates)
    return set(np.array(values, object)[_listed(names, values)])


def cleared(rows: pa.Table, forgotten: Mask) -> pa.Table:
    """Clear those of `rows` (or records of a plan) that are `forgotten`: only position and CLEARED_VALUES remain."""
    for index, field in enumerate(rows.schema) if forgotten.any() else ():
        if field.name != "record":
            value = pa.scalar(CLEARED_VALUES.get(field.name), field.type)
            rows = rows.set_column(index, field, pc.if_else(pa.array(forgotten), value, rows[field.name]))
    return rows


def clear_forgotten(rows: pa.Table, names: Names) -> pa.Table:
    """Return `rows` (or records of a plan), with those that match `names` cleared."""
    return cleared(rows, are_forgotten(rows, names))


def _names_of_content(sha256: str) -> list[str]:
    return [sha256, sha256[:IMAGE_ID_DIGITS]]


NAMES_BY_COLUMN: Mapping[str, Callable[[str], list[str]]] = {
    "image_id": lambda image_id: [image_id],
    "duplicate_of": lambda image_id: [image_id],
    "sha256": _names_of_content,
    "source_uri": lambda address: [name_of_address(address)],
    "source_url": lambda address: [name_of_address(address)],
}
"""The names of an image that follow from a value of each of these columns, in tables of rows, plans and reports."""


def _names(rows: pa.Table) -> Iterator[tuple[int, str]]:
    """Yield the index of a row and a name in that row, for all names in `rows`."""
    for column, names_of in NAMES_BY_COLUMN.items():
        for index, value in enumerate(rows[column].to_pylist() if column in rows.column_names else ()):
            if value is not None:
                yield from ((index, name) for name in names_of(value))


def _listed(names: Names, candidates: Sequence[str]) -> Mask:
    """Return a mask of the `candidates` that are among `names`."""
    if not len(names):
        return np.zeros(len(candidates), bool)
    values = np.array(candidates, "S64")
    return np.asarray(names[np.searchsorted(names, values) % len(names)] == values)
