from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ClusteringConfig
from pipeline.records import TIMESTAMP
from pipeline.reporting.page.summaries import (
    BINS,
    axes_of,
    day,
    losses,
    percentages,
    timeline,
    top_hashtags,
)
from pipeline.reporting.tables.manifest import by_cluster, clusters_schema
from tests.support.made_page import made_clusters

SCHEMA = clusters_schema(ClusteringConfig())


@given(st.lists(st.integers(0, 10**7), max_size=60))
def test_percentages_add_up_to_a_hundred_and_are_off_by_less_than_a_tenth(sizes: list[int]) -> None:
    values = [float(text.removesuffix(" %")) for text in percentages(sizes)]
    if sum(sizes):
        assert sum(round(10 * value) for value in values) == 1000
        assert all(abs(value - 100 * size / sum(sizes)) < 0.1 for value, size in zip(values, sizes, strict=True))
    else:
        assert set(values) <= {0.0}


def test_losses_and_times_account_for_every_image() -> None:
    clusters = made_clusters(4, 500)
    axes = axes_of(clusters)
    for members in by_cluster(clusters, 4):
        assert sum(losses(members, axes)) == sum(timeline(members, axes)) == members.num_rows
        assert len(losses(members, axes)) == BINS


def test_images_without_a_time_have_no_timeline() -> None:
    clusters = made_clusters(2, 10)
    times = clusters.schema.get_field_index("taken_at")
    clusters = clusters.set_column(times, SCHEMA.field("taken_at"), pa.nulls(10, TIMESTAMP))
    assert axes_of(clusters).times is None
    assert timeline(clusters, axes_of(clusters)) == []


def test_an_image_counts_once_for_a_hashtag_however_it_is_written() -> None:
    clusters = made_clusters(1, 3)
    tags = [["Rome", "rome", "trevi"], None, ["ROME", ""]]
    clusters = clusters.set_column(clusters.schema.get_field_index("hashtags"), SCHEMA.field("hashtags"), [tags])
    assert top_hashtags(clusters, 5) == [("rome", 2), ("trevi", 1)]
    assert top_hashtags(clusters.slice(2), 5) == [("rome", 1)]
    assert top_hashtags(clusters, 5, min_images=2) == [("rome", 2)]


@pytest.mark.parametrize(
    ("milliseconds", "expected"), [(0, "1970-01-01"), (-86_400_000, "1969-12-31"), (1.4e12, "2014-05-13")]
)
def test_a_time_is_shown_as_its_day(milliseconds: float, expected: str) -> None:
    assert day(milliseconds) == expected
