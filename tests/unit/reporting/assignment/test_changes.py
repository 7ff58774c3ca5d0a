from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ClusteringConfig
from pipeline.reporting.assignment.changes import (
    MAX_LISTED,
    Changes,
    change_tiles,
    changes_of,
    describe_changes,
    largest_changes,
)
from pipeline.reporting.survey.quality import Quality
from pipeline.reporting.tables.manifest import clusters_schema, clusters_table, prototypes_table
from tests.support.made_collection import BLUE, GREEN, RED, plain

SCHEMA = clusters_schema(ClusteringConfig())
LOSS = "negative_log_likelihood"
QUALITY = Quality(0.5, None, None, None, None, None, None)


def images(sizes: list[int], loss: float = 1.0) -> pa.Table:
    """Return a clusters table of clusters with the given `sizes`, whose images all have the same loss."""
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    given = {"cluster": cluster, LOSS: np.full(len(cluster), loss), "image_id": [str(i) for i in range(len(cluster))]}
    columns = [pa.array(given[f.name], f.type) if f.name in given else pa.nulls(len(cluster), f.type) for f in SCHEMA]
    return clusters_table([pa.table(columns, schema=SCHEMA)], SCHEMA)


def prototypes(sizes: list[int]) -> pa.Table:
    colors = [plain((RED, GREEN, BLUE)[index % 3]) for index in range(len(sizes))]
    return prototypes_table(images(sizes), colors, [1 / len(sizes)] * len(sizes), [asdict(QUALITY)] * len(sizes), 0)


def changes(crawl_sizes: list[int], run_sizes: list[int], loss: float = 1.0) -> Changes:
    """Compare a crawl and a run whose clusters have the given sizes."""
    return changes_of(images(crawl_sizes, loss), prototypes(run_sizes), np.ones(sum(run_sizes)))


sizes = st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any)


@settings(deadline=None)
@given(sizes, sizes)
def test_sizes_are_those_of_both_and_changes_of_share_cancel_out(crawl_sizes: list[int], run_sizes: list[int]) -> None:
    table = changes(crawl_sizes, run_sizes).table
    assert (table["size"].to_pylist(), table["run_size"].to_pylist()) == (crawl_sizes, run_sizes)
    assert sum(table["share_change"].to_pylist()) == pytest.approx(0)
    assert [row["share"] - row["run_share"] for row in table.to_pylist()] == table["share_change"].to_pylist()


def test_a_cluster_without_images_has_no_mean_loss() -> None:
    rows = changes([0, 2], [3, 0], loss=4.0).table.to_pylist()
    assert [row[f"mean_{LOSS}"] for row in rows] == [None, 4.0]
    assert [row[f"run_mean_{LOSS}"] for row in rows] == [1.0, None]


def test_images_worse_than_nearly_all_of_the_run_are_unexplained() -> None:
    run_losses = np.arange(1000, dtype=np.float32)
    crawl = pa.concat_tables([images([5], loss) for loss in (0.0, 500.0, 980.0, 995.0)])
    found = changes_of(crawl, prototypes([1]), run_losses)
    assert 980 < found.unexplained_above < 995
    assert (found.unexplained, found.mean_loss, found.run_mean_loss) == (5, 618.75, 499.5)


def test_one_in_a_hundred_of_the_same_images_is_unexplained() -> None:
    losses = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    crawl = images([10_000]).set_column(SCHEMA.get_field_index(LOSS), SCHEMA.field(LOSS), pa.array(losses))
    assert changes_of(crawl, prototypes([1]), losses).unexplained == 100


def test_the_picture_starts_with_the_largest_rise() -> None:
    tiles = change_tiles(changes([1, 1, 8], [5, 3, 2]), prototypes([5, 3, 2]))
    assert [(tile.cluster, tile.size, tile.share_label) for tile in tiles] == [
        (2, 8, "20.0% to 80.0%"), (1, 1, "30.0% to 10.0%"), (0, 1, "50.0% to 10.0%"),
    ]  # fmt: skip
    assert np.array_equal(tiles[0].picture, plain(BLUE))


def test_few_clusters_are_listed_and_none_without_a_change() -> None:
    found = largest_changes(changes([2] * 8 + [1] * 9 + [3], [1] * 8 + [2] * 9 + [8]))
    assert [row["cluster"] for row in found["fall"]] == [17, 8, 9, 10, 11]
    assert [len(rows) for rows in found.values()] == [MAX_LISTED, MAX_LISTED]
    same = changes([2, 2], [1, 1])
    document: dict[str, Any] = {"changes": largest_changes(same), "counts": {"images": 4, "unexplained": 0}}
    assert describe_changes(document) == [
        "more often: none",
        "less often: none",
        "0 of 4 images (0.0%) have a higher loss than 99% of the run's images; about 1% would be expected if the crawl "
        "showed the same views",
    ]
