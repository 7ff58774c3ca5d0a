from __future__ import annotations

import csv
import io
from collections import Counter
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.reporting.tables import cluster_files
from pipeline.reporting.tables.cluster_files import write_clusters_csv, write_clusters_parquet
from pipeline.reporting.tables.manifest import SCHEMA_VERSION, loss_column
from pipeline.storage import LocalStorage
from tests.support.made_page import made_clusters


def parquet(folder: Path, clusters: pa.Table) -> pq.ParquetFile:
    write_clusters_parquet(LocalStorage(str(folder)), "clusters.parquet", clusters)
    return pq.ParquetFile(folder / "clusters.parquet")


def rows_of(folder: Path, clusters: pa.Table) -> list[dict[str, str]]:
    write_clusters_csv(LocalStorage(str(folder)), "clusters.csv", clusters)
    text = (folder / "clusters.csv").read_bytes()
    assert text.startswith(b"\xef\xbb\xbf")
    return list(csv.DictReader(io.StringIO(text.decode("utf-8-sig"), newline="")))


def spans(file: pq.ParquetFile, name: str) -> list[tuple[float, float]]:
    """Return the minimum and maximum of a column in each row group, according to its statistics."""
    index = file.schema_arrow.get_field_index(name)
    groups = [file.metadata.row_group(i).column(index).statistics for i in range(file.metadata.num_row_groups)]
    return [(group.min, group.max) for group in groups]


def test_the_file_contains_the_table(tmp_path: Path) -> None:
    clusters = made_clusters(7, 300)
    stored = parquet(tmp_path, clusters).read()
    assert stored.to_pylist() == clusters.to_pylist()
    assert [field.metadata[b"doc"] for field in stored.schema] == [f.metadata[b"doc"] for f in clusters.schema]


def test_a_query_for_one_cluster_can_skip_all_others(tmp_path: Path) -> None:
    file = parquet(tmp_path, made_clusters(7, 300))
    assert spans(file, "cluster") == [(cluster, cluster) for cluster in range(7)]


def test_a_large_cluster_has_several_row_groups_sorted_by_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_files, "ROWS_PER_GROUP", 50)
    clusters = made_clusters(2, 300)
    file = parquet(tmp_path, clusters)
    assert [span[0] for span in spans(file, "cluster")] == [0] * 4 + [1] * 2
    losses = spans(file, loss_column(clusters.schema))[:4]
    assert all(before[1] <= after[0] for before, after in pairwise(losses))


def test_the_file_states_the_sort_order_and_the_schema_version(tmp_path: Path) -> None:
    clusters = made_clusters(2, 10)
    file = parquet(tmp_path, clusters)
    order = [file.schema_arrow.names[column.column_index] for column in file.metadata.row_group(0).sorting_columns]
    assert order == ["cluster", loss_column(clusters.schema)]
    assert file.schema_arrow.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()


def test_without_images_the_files_are_empty(tmp_path: Path) -> None:
    clusters = made_clusters(2, 0)
    assert parquet(tmp_path, clusters).read().num_rows == 0
    assert rows_of(tmp_path, clusters) == []


def readme_queries() -> list[str]:
    """Return the SQL queries of the section "Querying the tables" of pipeline/reporting/README.md."""
    text = (Path(__file__).parents[4] / "pipeline" / "reporting" / "README.md").read_text(encoding="utf-8")
    section = text.split("\n## Querying the tables")[1].split("\n## ")[0]
    return [block.removeprefix("sql\n") for block in section.split("```") if block.startswith("sql\n")]


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    """The clusters table; the working directory has it as ``clusters.parquet``, and ``prototypes.parquet``."""
    clusters = made_clusters(9, 300)
    parquet(tmp_path, clusters)
    rows = [{"cluster": cluster, "quality": cluster / 8} for cluster in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prototypes.parquet")
    monkeypatch.chdir(tmp_path)
    return clusters


def test_the_readme_s_best_images_of_a_cluster(tables: pa.Table) -> None:
    found = [row[0] for row in duckdb.execute(readme_queries()[0]).fetchall()]
    members = tables.filter(pc.equal(tables["cluster"], 7))
    assert found == members["image_id"].to_pylist()[:100]


def test_the_readme_s_hashtags_of_clear_views(tables: pa.Table) -> None:
    tags = [tag for row in tables.to_pylist() if row["cluster"] > 4 for tag in row["hashtags"] or ()]
    assert dict(duckdb.execute(readme_queries()[1]).fetchall()) == dict(Counter(tags).most_common(20))


def test_the_spreadsheet_has_one_row_per_image_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_files, "ROWS_AT_ONCE", 7)
    clusters = made_clusters(3, 40, captions=['two\nlines, "quoted"', "café"])
    rows = rows_of(tmp_path, clusters)
    assert [row["image_id"] for row in rows] == clusters["image_id"].to_pylist()
    assert [int(row["cluster"]) for row in rows] == clusters["cluster"].to_pylist()
    assert [row["caption"] for row in rows] == clusters["caption"].to_pylist()
    losses = [float(row["negative_log_likelihood"]) for row in rows]
    assert np.allclose(losses, clusters["negative_log_likelihood"].to_numpy(), rtol=1e-6)
    assert rows[0]["taken_at"] == clusters["taken_at"][0].as_py().isoformat()
    assert rows[0]["hashtags"] == "tag0 rome"
    assert "transform_color" not in rows[0]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "＝"])
def test_no_text_becomes_a_formula(tmp_path: Path, start: str) -> None:
    rows = rows_of(tmp_path, made_clusters(1, 1, captions=[f'{start}HYPERLINK("http://evil")\0']))
    assert rows[0]["caption"] == f'\'{start}HYPERLINK("http://evil")'
    assert float(rows[0]["negative_log_likelihood"]) < 0


@pytest.mark.parametrize(
    ("caption", "cell"),
    [
        ("hi;=cmd|' /C calc'!A0", "hi;'=cmd|' /C calc'!A0"),
        ("two\n=lines", "two\n'=lines"),
        ("a\t@b; +c| -d", "a\t'@b; '+c| '-d"),
        ("a - b, c = d; e", "a - b, c = d; e"),
    ],
)
def test_no_part_of_a_text_becomes_a_formula_with_another_separator(tmp_path: Path, caption: str, cell: str) -> None:
    assert rows_of(tmp_path, made_clusters(1, 1, captions=[caption]))[0]["caption"] == cell
