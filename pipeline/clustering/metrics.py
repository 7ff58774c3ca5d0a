"""How well clusters agree with true classes: accuracy and normalised mutual information, as the DTI paper reports them.

Labels are for evaluation alone: nothing here is called while a model is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Metrics:
    """Agreement of one assignment with the labels, over the images that have one."""

    accuracy: float
    """In [0, 1]; see `accuracy`."""
    nmi: float
    """In [0, 1]; see `nmi`."""
    labelled_images: int
    classes: int
    """Different labels among those images."""


def evaluate(labels: Sequence[str | None], clusters: Sequence[int] | Integers, k: int) -> Metrics | None:
    """The metrics of `clusters`, in [0, `k`), against the `labels` of the same images; None where no image has one."""
    labelled = [(label, int(cluster)) for label, cluster in zip(labels, clusters, strict=True) if label is not None]
    if not labelled:
        return None
    names, classes = np.unique([label for label, _ in labelled], return_inverse=True)
    assigned = np.array([cluster for _, cluster in labelled])
    return Metrics(accuracy(classes, assigned, k), nmi(classes, assigned), len(labelled), len(names))


def accuracy(classes: Integers, clusters: Integers, k: int) -> float:
    """Part of the images whose cluster stands for their class, in [0, 1].

    With as many clusters as classes, each cluster stands for one class and no two for the same: the matching with the
    highest accuracy (Hungarian algorithm). Otherwise each cluster stands for its most frequent class (majority vote).

    Args:
        classes: true class per image, at least one.
        clusters: cluster per image, in [0, `k`).
        k: number of clusters, those without images included.
    """
    from scipy.optimize import linear_sum_assignment

    names, class_of = np.unique(classes, return_inverse=True)
    counts_KL = np.zeros((k, len(names)), np.int64)
    np.add.at(counts_KL, (clusters, class_of), 1)
    if k == len(names):
        correct = counts_KL[linear_sum_assignment(counts_KL, maximize=True)].sum()
    else:
        correct = counts_KL.max(axis=1).sum()
    return float(correct / len(classes))


def nmi(classes: Integers, clusters: Integers) -> float:
    """Mutual information of classes and clusters over the arithmetic mean of their entropies, in [0, 1].

    1 where each determines the other, also where there is only one of both.
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(classes, clusters, average_method="arithmetic"))
