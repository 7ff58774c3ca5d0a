from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import scipy.optimize  # noqa: F401 (takes longer than a test may)
import sklearn.metrics  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.clustering.metrics import Metrics, accuracy, evaluate, nmi

Assignments = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]


@st.composite
def assignments(draw: st.DrawFn, as_many: bool = False) -> Assignments:
    """Classes, clusters and K; with `as_many` K equals the number of classes that occur."""
    n = draw(st.integers(1, 40))
    classes = draw(arrays(np.int64, n, elements=st.integers(0, 4)))
    k = len(set(classes.tolist())) if as_many else draw(st.integers(1, 6))
    return classes, draw(arrays(np.int64, n, elements=st.integers(0, k - 1))), k


@given(assignments(as_many=True))
def test_with_as_many_clusters_as_classes_accuracy_is_that_of_the_best_matching(drawn: Assignments) -> None:
    classes, clusters, k = drawn
    matchings = [np.array(order)[clusters] for order in permutations(sorted(set(classes.tolist())), k)]
    assert accuracy(classes, clusters, k) == pytest.approx(max(np.mean(m == classes) for m in matchings))


def test_otherwise_every_cluster_represents_its_most_frequent_class() -> None:
    classes = np.array([0, 0, 0, 1, 1, 1])
    clusters = np.array([0, 0, 1, 1, 1, 2])
    # Two of the three clusters hold a single class; in cluster 1 the majority is two to one.
    assert accuracy(classes, clusters, 3) == pytest.approx(5 / 6)
    # Matched one to one, two clusters cannot represent the same class.
    assert accuracy(np.array([0, 0, 1, 2]), np.array([0, 1, 2, 2]), 3) == pytest.approx(2 / 4)
    assert accuracy(np.array([0, 0, 1, 2]), np.array([0, 1, 2, 2]), 4) == pytest.approx(3 / 4)


def test_clusters_without_images_count_in_k() -> None:
    classes, clusters = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 0, 0, 1, 1])
    assert accuracy(classes, clusters, 3) == pytest.approx(4 / 6)
    assert accuracy(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), 5) == pytest.approx(3 / 4)


@given(assignments(), st.randoms())
def test_the_names_of_clusters_and_the_order_of_images_do_not_matter(drawn: Assignments, random: Any) -> None:
    classes, clusters, k = drawn
    renamed = np.array(random.sample(range(k), k))[clusters]
    order = np.array(random.sample(range(len(classes)), len(classes)))
    assert accuracy(classes[order], renamed[order], k) == pytest.approx(accuracy(classes, clusters, k))
    assert nmi(classes[order], renamed[order]) == pytest.approx(nmi(classes, clusters), abs=1e-9)


@given(assignments())
def test_both_metrics_stay_within_their_bounds(drawn: Assignments) -> None:
    classes, clusters, k = drawn
    largest = max(np.bincount(classes)) / len(classes)
    n_classes = len(set(classes.tolist()))
    # With majority votes, accuracy is at least the share of the largest class; the K! matchings have a mean of 1/K.
    assert (1 / n_classes if k == n_classes else largest) <= accuracy(classes, clusters, k) + 1e-9
    assert accuracy(classes, clusters, k) <= 1
    assert -1e-9 <= nmi(classes, clusters) <= 1 + 1e-9


@given(assignments())
def test_the_true_classes_have_perfect_metrics(drawn: Assignments) -> None:
    classes, _, _ = drawn
    assert accuracy(classes, classes, int(classes.max()) + 1) == 1
    assert nmi(classes, classes) == pytest.approx(1)


def test_nmi_is_normalised_by_the_arithmetic_mean() -> None:
    # Entropies are 1 bit (classes) and 2 bits (clusters), mutual information is 1 bit: 1 / ((1 + 2) / 2).
    assert nmi(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3])) == pytest.approx(2 / 3)


def test_only_labelled_images_count() -> None:
    assert evaluate(["a", None, "b", "b"], [1, 0, 0, 0], k=2) == Metrics(1.0, 1.0, 3, 2)
    assert evaluate([None, None], [0, 1], k=2) is None
    assert evaluate([], [], k=2) is None
