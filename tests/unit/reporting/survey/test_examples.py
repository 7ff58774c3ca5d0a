from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.reporting.survey.examples import (
    GROUPS,
    PICTURES_PER_CLUSTER,
    PICTURES_PER_EXAMPLE,
    example_budget,
    examples_of,
    farthest_rows,
    random_rows,
    unexplained_rows,
)
from pipeline.reporting.tables.manifest import by_cluster
from tests.support.made_page import made_clusters

LOSS = "negative_log_likelihood"


def ids(rows: pa.Table) -> list[str]:
    return list(rows["image_id"].to_pylist())


def test_nearest_and_farthest_are_the_ends_of_a_cluster() -> None:
    clusters = made_clusters(3, 200)
    members = by_cluster(clusters, 3)[1]
    examples = examples_of(members, 4)
    losses = sorted(members[LOSS].to_pylist())
    assert examples.nearest[LOSS].to_pylist() == losses[:4]
    assert examples.farthest[LOSS].to_pylist() == losses[:-5:-1]
    assert set(ids(examples.random)) <= set(ids(members))


def test_a_cluster_with_fewer_images_shows_each_once() -> None:
    clusters = made_clusters(1, 3)
    examples = examples_of(pa.concat_tables([clusters, clusters]).sort_by(LOSS), 8)
    for rows in (examples.nearest, examples.random, examples.farthest):
        assert sorted(ids(rows)) == sorted(ids(clusters))


def test_random_examples_depend_on_nothing_but_the_images() -> None:
    clusters = made_clusters(1, 300)
    shuffled = clusters.take(pa.array(np.random.default_rng(0).permutation(300)))
    halves = pa.concat_tables([random_rows(clusters.slice(0, 100), 5), random_rows(clusters.slice(100), 5)])
    assert ids(random_rows(clusters, 5)) == ids(random_rows(shuffled, 5)) == ids(random_rows(halves, 5))


def test_every_image_is_as_likely_as_any_other() -> None:
    clusters = made_clusters(1, 4000)
    positions = np.array([int(image_id, 16) for image_id in ids(random_rows(clusters, 1000))])
    quarters = np.bincount(positions // 1000, minlength=4)
    assert abs(quarters - 250).max() < 60


def test_unexplained_images_are_above_tukey_s_fence() -> None:
    clusters = made_clusters(3, 500)
    losses = clusters[LOSS].to_numpy().astype(np.float64)
    low, high = np.percentile(losses, [25, 75])
    fence, rows = unexplained_rows(clusters)
    assert fence == pytest.approx(high + 1.5 * (high - low), rel=1e-6)
    assert rows[LOSS].to_pylist() == sorted(losses[losses > fence], reverse=True)
    assert farthest_rows(rows, 2)[LOSS].to_pylist() == sorted(losses)[:-3:-1]


def test_without_images_none_is_unexplained() -> None:
    assert unexplained_rows(made_clusters(1, 0))[1].num_rows == 0


@pytest.mark.parametrize("k", [1, 12, 40, 200, 1000])
def test_all_pictures_of_a_page_fit(k: int) -> None:
    budget = example_budget(k, 8)
    pictures = k * (PICTURES_PER_CLUSTER + GROUPS * PICTURES_PER_EXAMPLE * budget.examples)
    assert pictures * budget.form.limit_bytes * 4 / 3 <= 14e6
    assert budget.form.limit_bytes >= 500


def test_many_clusters_have_fewer_and_smaller_examples() -> None:
    budgets = [example_budget(k, 8) for k in (12, 40, 200, 1000)]
    assert [budget.examples for budget in budgets] == [8, 8, 3, 0]
    assert [budget.form.side_px for budget in budgets] == [96, 96, 64, 48]


def test_no_examples_if_none_are_wanted() -> None:
    assert example_budget(5, 0).examples == 0
