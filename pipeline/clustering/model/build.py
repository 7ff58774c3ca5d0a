"""Method names to models."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.clustering.model.dti import DTI, DTIGaussianMixture, DTIKMeans
from pipeline.clustering.model.pixel import TIGaussianMixture, TIKMeans
from pipeline.config import ClusteringConfig, Method

METHODS: dict[Method, type[DTI]] = {
    "dti-gmm": DTIGaussianMixture,
    "dti-kmeans": DTIKMeans,
    "ti-gmm": TIGaussianMixture,
    "ti-kmeans": TIKMeans,
    # Without transformations nothing is left to predict: the mixture and K-means of pixels, by gradient descent.
    "gmm": DTIGaussianMixture,
    "kmeans": DTIKMeans,
}


def build_method(config: ClusteringConfig, initial_KCHW: Tensor, seed: int, device_type: str = "cpu") -> DTI:
    """The configured method; networks are initialised from `seed`, whatever random numbers were drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return METHODS[config.method](config, initial_KCHW, device_type)
