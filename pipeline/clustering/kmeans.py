"""K-means of scikit-learn with the same result on every machine, whatever its number of threads."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def kmeans_labels(features_ND: Tensor, k: int, tries: int, seed: int) -> Tensor:
    """Return the cluster (N,), int64, of each of the features (N, D), the best of several runs of K-means.

    Fewer than `k` clusters have members if fewer than `k` features differ.

    Args:
        features_ND: features on the CPU; N is at least `k`.
        k: number of clusters.
        tries: number of runs.
        seed: seed of all random choices.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # Several threads would add their partial sums in any order, and the sums of a resumed run could be rounded
    # differently.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different features than clusters
        labels = KMeans(k, n_init=tries, random_state=seed).fit(features_ND.numpy()).labels_
    return torch.from_numpy(labels).long()
