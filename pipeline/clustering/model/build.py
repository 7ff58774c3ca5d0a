"""Builds the model for the name of a method."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.clustering.model.direct_alignment import TIGaussianMixture, TIKMeans
from pipeline.clustering.model.dti import DTI, DTIGaussianMixture, DTIKMeans
from pipeline.config import ClusteringConfig, Method

METHODS: dict[Method, type[DTI]] = {
    "dti-gmm": DTIGaussianMixture,
    "dti-kmeans": DTIKMeans,
    "ti-gmm": TIGaussianMixture,
    "ti-kmeans": TIKMeans,
    # Without transformations there is nothing to predict: a mixture and K-means of pixels, by gradient descent.
    "gmm": DTIGaussianMixture,
    "kmeans": DTIKMeans,
}


def build_method(config: ClusteringConfig, initial_KCHW: Tensor, seed: int, device_type: str = "cpu") -> DTI:
    """Build the configured method from initial prototypes, float in [0, 1].

    Networks are initialised from `seed` alone, regardless of earlier random draws.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        method = METHODS[config.method](config, initial_KCHW, device_type)
    method.activate(0)
    return method
