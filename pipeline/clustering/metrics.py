"""Agreement of clusters with true classes: accuracy and normalised mutual information, as the DTI paper reports them.

Labels serve evaluation only: training uses none of these functions.
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
    """Clustering accuracy in [0, 1]; see `accuracy`."""
    nmi: float
    """Normalised mutual information in [0, 1]; see `nmi`."""
    labelled_images: int
    """Number of images that have a label."""
    classes: int
    """Number of different labels of these images."""


def evaluate(labels: Sequence[str | None], clusters: Sequence[int] | Integers, k: int) -> Metrics | None:
    """Return the metrics of `clusters`, in [0, `k`), for the `labels` of the same images; None if no image has one."""
    labelled = [(label, int(cluster)) for label, cluster in zip(labels, clusters, strict=True) if label is not None]
    if not labelled:
        return None
    names, classes = np.unique([label for label, _ in labelled], return_inverse=True)
    assigned = np.array([cluster for _, cluster in labelled])
    return Metrics(accuracy(classes, assigned, k), nmi(classes, assigned), len(labelled), len(names))


def accuracy(classes: Integers, clusters: Integers, k: int) -> float:
    """Return the fraction of images whose cluster represents their class, in [0, 1].

    With as many clusters as classes, clusters and classes are matched one to one, with the highest possible accuracy
    (Hungarian algorithm). Otherwise each cluster represents its most frequent class (majority vote).

    Args:
        classes: true class of each image, of at least one image.
        clusters: cluster of each image, in [0, `k`).
        k: number of clusters, including those without images.
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
    """Return the mutual information of classes and clusters over the arithmetic mean of their entropies, in [0, 1].

    It is 1 where each determines the other, including the case of a single class and a single cluster.
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(classes, clusters, average_method="arithmetic"))
