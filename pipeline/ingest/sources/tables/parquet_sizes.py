"""Compare the sizes in the metadata of a Parquet table with bounds, in a process of its own.

    python -P pipeline/ingest/sources/tables/parquet_sizes.py < FOOTER

The process reads the end of a table, from its metadata on, and prints a JSON object: the names of the columns that are
too large to be decoded, and why (empty for columns of files, which need no explanation). pyarrow ends the whole process
where the metadata of a column is damaged; here, this ends nothing but the check.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any, BinaryIO

MAX_FOOTER_BYTES = 64 * 2**20
"""Maximum size of the metadata in bytes."""

MAX_REPEATED_VALUES = 20_000_000
"""Maximum number of values of a column of lists in one row group; all of them may be in one row."""

MAX_COMPRESSION = 1_000
"""Maximum ratio of decompressed to compressed bytes of a column of more than MAX_UNCHECKED_BYTES."""

MAX_UNCHECKED_BYTES = 64 * 2**20
"""Size in bytes, decompressed, up to which a column may be compressed by any ratio."""

MAX_MEAN_BINARY_BYTES = 2**14
"""Maximum mean size in bytes of the values of a binary column that is read; larger ones are files, not texts."""

CHECK_S = 120.0
"""Maximum time of the check in seconds."""

MAGIC = b"PAR1"


def columns_too_large(stream: BinaryIO) -> dict[str, str]:
    """Return the columns of the Parquet table `stream` that are too large to be decoded, with the reasons.

    Raises ValueError where the metadata is missing or damaged, or exceeds MAX_FOOTER_BYTES.
    """
    end = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, end - 8))
    tail = stream.read(8)
    size = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or size > min(end - 8, MAX_FOOTER_BYTES):
        raise ValueError("its metadata is missing, cut off or too large")
    stream.seek(end - 8 - size)
    footer = MAGIC + stream.read(size) + tail
    command = [sys.executable, "-P", __file__]
    try:
        done = subprocess.run(command, input=footer, capture_output=True, check=False, timeout=CHECK_S)
    except subprocess.TimeoutExpired as error:
        raise ValueError("its metadata takes too long to read") from error
    if done.returncode:
        raise ValueError("its metadata is damaged")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def is_binary(leaf: Any) -> bool:
    """Return whether a leaf column holds bytes that are not declared to be text."""
    return leaf.physical_type in {"BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"} and leaf.logical_type.type == "NONE"


def too_large(metadata: Any) -> dict[str, str]:
    """Return the columns that are too large, by the `pyarrow.parquet.FileMetaData` of a table, with the reasons."""
    found: dict[str, str] = {}
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for i in range(metadata.num_columns):
            chunk, leaf = group.column(i), metadata.schema.column(i)
            name = chunk.path_in_schema.partition(".")[0]
            size, values = chunk.total_uncompressed_size, max(1, chunk.num_values)
            if leaf.max_repetition_level and chunk.num_values > MAX_REPEATED_VALUES:
                found[name] = f"lists of {chunk.num_values:,} values"
            elif size > max(MAX_UNCHECKED_BYTES, MAX_COMPRESSION * chunk.total_compressed_size):
                found[name] = f"{size:,} bytes, decompressed from {chunk.total_compressed_size:,}"
            elif is_binary(leaf) and max(size / values, leaf.length) > MAX_MEAN_BINARY_BYTES:
                found[name] = ""
    return found


if __name__ == "__main__":
    import pyarrow.parquet as pq

    print(json.dumps(too_large(pq.read_metadata(io.BytesIO(sys.stdin.buffer.read())))))
