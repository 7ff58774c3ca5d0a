from __future__ import annotations

import io
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.sources.metadata import MAX_ITEMS
from pipeline.ingest.sources.tables.parquet_rows import MAX_TEXT_BYTES, parquet_rows
from pipeline.ingest.sources.tables.rows import BrokenRow, NotATable
from tests.support.dump_files import parquet
from tests.support.fuzzing import fuzzed

ROOT = Path(__file__).parents[4]


def rows(columns: dict[str, Any], **options: Any) -> list[Any]:
    return [row for _, row in parquet_rows(io.BytesIO(parquet(columns, **options)))]


def test_values_of_nested_types_are_python_values() -> None:
    found = rows(
        {
            "tags": [["x", "y"], None, []],
            "post": pa.array([{"a": "q", "b": [1, 2]}, None, {"a": None, "b": []}]),
            "by_name": pa.array([[("k", "v")], [], None], pa.map_(pa.string(), pa.string())),
            "large": pa.array(["u", "v", None], pa.large_string()),
            "view": pa.array(["u", "v", None], pa.string_view()),
            "pair": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int32(), 2)),
            "lists": pa.array([[["a"], []], None, [["b"]]]),
            "coded": pa.array(["a", "a", None]).dictionary_encode(),
        }
    )
    assert found[0] == {
        "tags": ["x", "y"], "post": {"a": "q", "b": [1, 2]}, "by_name": [{"key": "k", "value": "v"}], "large": "u",
        "view": "u", "pair": [1, 2], "lists": [["a"], []], "coded": "a",
    }  # fmt: skip
    assert found[1] == {
        "tags": None, "post": None, "by_name": [], "large": "v", "view": "v", "pair": [3, 4], "lists": None,
        "coded": "a",
    }  # fmt: skip
    assert found[2]["post"] == {"a": None, "b": []}
    assert found[2]["coded"] is None


def test_binary_columns_that_hold_text_are_text() -> None:
    values = ["Straße".encode(), b"\xff\xd8\xff", None]
    found = rows({"text": values, "fixed": pa.array([b"ab", b"\xff\xff", None], pa.binary(2))})
    assert [row["text"] for row in found] == ["Straße", None, None]
    assert [row["fixed"] for row in found] == ["ab", None, None]


def test_a_column_of_image_files_is_not_read() -> None:
    assert rows({"url": ["a"], "bytes": [b"\xff" * 100_000]}) == [{"url": "a"}]


def test_long_texts_and_lists_are_cut() -> None:
    (row,) = rows({"text": ["é" * MAX_TEXT_BYTES], "tags": [["a"] * 5_000], "numbers": [list(range(5_000))]})
    assert row["text"] == "é" * (MAX_TEXT_BYTES // 2)
    assert (len(row["tags"]), len(row["numbers"])) == (MAX_ITEMS, MAX_ITEMS)


MEGABYTE = "x" * (1 << 20)
BOMBS: dict[str, Callable[[], Any]] = {
    "text": lambda: pa.array([MEGABYTE] * 256),
    "large": lambda: pa.array([MEGABYTE] * 256, pa.large_string()),
    "binary": lambda: pa.array([MEGABYTE.encode()] * 256, pa.large_binary()),
    "struct": lambda: pa.array([{"a": MEGABYTE}] * 256),
    "list": lambda: pa.array([[MEGABYTE] * 8] * 32),
    "plain": lambda: pa.array([MEGABYTE] * 256),
    "numbers": lambda: pa.ListArray.from_arrays(
        pa.array([0, 25_000_000], pa.int32()), pa.nulls(25_000_000, pa.int64())
    ),
}
"""Columns of 200 to 256 MB that take less than a megabyte in a file."""


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_cannot_take_much_memory(name: str, tmp_path: Path) -> None:
    bomb = BOMBS[name]()
    table = pa.table({"url": ["https://a.example/1"] * len(bomb), "bomb": bomb})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd", use_dictionary=name != "plain")
    assert (tmp_path / "x.parquet").stat().st_size < 1 << 20
    count = "sum(1 for _ in parquet_rows(open(sys.argv[1], 'rb')))"
    script = f"import sys; from pipeline.ingest.sources.tables.parquet_rows import parquet_rows; print({count})"
    limit = 512 * 2**20  # of address space; imports take 280 MiB of it
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x.parquet")],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        env={"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.split()[-1:] == [str(len(bomb))], done.stderr


VALID = parquet(
    {"url": ["https://a.example/1", None], "tags": [["a"], []], "post": [{"a": [1]}, None], "bytes": [b"x", b"\xff"]},
    compression="zstd",
)


@pytest.mark.fuzz
@fuzzed(60)
@given(st.data())
def test_a_table_with_any_change_has_rows_or_is_no_table(data: st.DataObject) -> None:
    content = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, len(content) - 1), st.integers(len(content) - 60, len(content) - 1)))
        piece = data.draw(st.binary(min_size=1, max_size=6))
        content[at : at + len(piece)] = piece
    with suppress(NotATable):
        for _, row in parquet_rows(io.BytesIO(content)):
            assert isinstance(row, BrokenRow | dict)
