from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import ClusteringConfig
from pipeline.errors import PipelineError
from pipeline.records import Crawl
from pipeline.reporting.survey.quality import Quality
from pipeline.reporting.tables.manifest import (
    by_cluster,
    check_counts,
    clusters_schema,
    clusters_table,
    loss_column,
    median_margin,
    nearest_of,
    prototypes_schema,
    prototypes_table,
    transform_columns,
)
from pipeline.storage import LocalStorage, read_table, write_table
from tests.support.made_collection import BLUE, GREEN, RED, plain

SCHEMA = clusters_schema(ClusteringConfig(transforms=["color", "projective"]))
LOSS = loss_column(SCHEMA)
STORAGE = LocalStorage("/w")
Assigned = tuple[int, float]


def rows(assigned: list[Assigned], crawl_id: str = "c1") -> pa.Table:
    """Return a table of images with the given clusters and losses; image ids contain their indices."""
    columns = [
        {"image_id": f"image-{i}", "crawl_id": crawl_id, "cluster": cluster, LOSS: loss}
        for i, (cluster, loss) in enumerate(assigned)
    ]
    return pa.Table.from_pylist(columns, SCHEMA)


def crawl(accepted: int, crawl_id: str = "c1") -> Crawl:
    return Crawl("paris", crawl_id, 1, accepted, accepted, {}, 16, "d")


def prototypes(clusters: pa.Table, n_nearest: int = 2) -> pa.Table:
    pictures = [plain(RED), plain(GREEN), plain(BLUE)]
    qualities = [Quality(quality, quality, None, None, None, None, None) for quality in (0.25, 0.5, 0.75)]
    return prototypes_table(clusters, pictures, [0.5, 0.25, 0.25], [asdict(q) for q in qualities], n_nearest)


anywhere = st.lists(st.tuples(st.integers(0, 2), st.floats(-1e6, 1e6, width=32)), max_size=40)


@pytest.mark.parametrize("schema", [SCHEMA, prototypes_schema(LOSS)], ids=["clusters", "prototypes"])
def test_every_field_is_documented(schema: pa.Schema) -> None:
    assert [field.name for field in schema if not (field.metadata or {}).get(b"doc")] == []


def test_the_loss_column_is_named_after_the_method_s_loss() -> None:
    assert loss_column(clusters_schema(ClusteringConfig(method="dti-gmm"))) == "negative_log_likelihood"
    assert loss_column(clusters_schema(ClusteringConfig(method="dti-kmeans"))) == "squared_error"


def test_each_transformation_has_a_column() -> None:
    assert transform_columns(SCHEMA) == {"color": "transform_color", "projective": "transform_projective"}


def test_a_stored_table_keeps_its_documentation(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    write_table(storage, "clusters.parquet", clusters_table([rows([(0, 1.0)])], SCHEMA))
    stored = read_table(storage, "clusters.parquet").schema
    assert stored.metadata == SCHEMA.metadata
    assert [field.metadata[b"doc"] for field in stored] == [field.metadata[b"doc"] for field in SCHEMA]


@given(anywhere)
def test_clusters_are_in_order_and_best_explained_first(assigned: list[Assigned]) -> None:
    table = clusters_table([rows(assigned[:7]), rows(assigned[7:], "c2")], SCHEMA)
    found = list(zip(table["cluster"].to_pylist(), table[LOSS].to_pylist(), strict=True))
    assert found == sorted(assigned)


@given(anywhere)
def test_sizes_and_shares_account_for_every_image(assigned: list[Assigned]) -> None:
    table = prototypes(clusters_table([rows(assigned)], SCHEMA))
    assert table["size"].to_pylist() == [sum(cluster == k for cluster, _ in assigned) for k in range(3)]
    assert sum(table["share"].to_pylist()) == pytest.approx(1 if assigned else 0)


@given(anywhere)
def test_every_image_is_among_those_of_its_cluster(assigned: list[Assigned]) -> None:
    tables = by_cluster(clusters_table([rows(assigned)], SCHEMA), 3)
    expected = [sorted(loss for k, loss in assigned if k == cluster) for cluster in range(3)]
    assert [members[LOSS].to_pylist() for members in tables] == expected


def test_order_does_not_depend_on_which_shard_came_first() -> None:
    first, second = rows([(0, 1.0), (1, 1.0)]), rows([(0, 1.0), (1, 0.5)], "c2")
    assert clusters_table([first, second], SCHEMA).equals(clusters_table([second, first], SCHEMA))


def test_a_missing_image_is_detected() -> None:
    with pytest.raises(PipelineError, match=r"c1: 2 images were assigned, 3 .*delete /w/paris/crawls/c1 and run"):
        check_counts(STORAGE, rows([(0, 1.0), (1, 1.0)]), [crawl(3)])


def test_surplus_images_of_one_crawl_do_not_compensate_missing_ones_of_another() -> None:
    table = pa.concat_tables([rows([(0, 1.0)] * 2), rows([(0, 1.0)] * 4, "c2")])
    with pytest.raises(PipelineError, match="crawl c1"):
        check_counts(STORAGE, table, [crawl(3), crawl(3, "c2")])


def test_images_of_another_crawl_are_detected() -> None:
    with pytest.raises(PipelineError, match="other"):
        check_counts(STORAGE, rows([(0, 1.0)], "other"), [])


def test_complete_counts_pass() -> None:
    table = pa.concat_tables([rows([(0, 1.0)]), rows([(0, 1.0)], "c2")])
    check_counts(STORAGE, table, [crawl(1), crawl(1, "c2"), crawl(0, "c3")])


def test_an_assignment_to_a_missing_prototype_is_detected() -> None:
    with pytest.raises(PipelineError, match="1 images are assigned to none of the 3 prototypes"):
        prototypes(clusters_table([rows([(0, 1.0), (3, 1.0)])], SCHEMA))


def test_an_empty_cluster_keeps_its_row() -> None:
    row = prototypes(clusters_table([rows([(0, 1.0), (2, 3.0)])], SCHEMA)).to_pylist()[1]
    assert (row["cluster"], row["size"], row["share"], row[f"mean_{LOSS}"], row["nearest"]) == (1, 0, 0.0, None, [])


def test_a_row_has_the_mean_loss_and_mixing_proportion_of_its_prototype() -> None:
    row = prototypes(clusters_table([rows([(0, 1.0), (0, 4.0)])], SCHEMA)).to_pylist()[0]
    assert (row[f"mean_{LOSS}"], row["mixing_proportion"]) == (2.5, 0.5)


def test_pixels_are_the_prototype_as_png() -> None:
    stored = prototypes(clusters_table([], SCHEMA))["pixels"][2].as_py()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored), formats=["PNG"])), plain(BLUE))


def test_an_image_of_two_crawls_is_listed_once_among_the_nearest() -> None:
    twice = [rows([(0, 1.0), (0, 2.0), (0, 3.0)], crawl_id) for crawl_id in ("c1", "c2")]
    nearest = nearest_of(by_cluster(clusters_table(twice, SCHEMA), 1)[0], 2)
    assert nearest["image_id"].to_pylist() == ["image-0", "image-1"]


def test_the_scores_are_in_the_rows_of_their_clusters() -> None:
    table = prototypes(clusters_table([rows([(0, 1.0)])], SCHEMA))
    assert table["quality"].to_pylist() == [0.25, 0.5, 0.75]
    assert table["explained"].null_count == 3


def test_the_median_margin_is_that_of_the_cluster() -> None:
    table = rows([(0, 1.0), (0, 2.0), (0, 3.0), (1, 4.0)])
    margins = pa.array([3.0, 10.0, 5.0, 99.0], pa.float32())
    table = table.set_column(table.schema.get_field_index("margin"), SCHEMA.field("margin"), margins)
    tables = by_cluster(clusters_table([table], SCHEMA), 3)
    assert [median_margin(members) for members in tables] == [5.0, 99.0, None]
