"""The one interface that every clustering method meets.

Shapes: B images, K prototypes, P chosen (image, prototype) pairs, C channels, H x W pixels.
Images are float32 in [0, 1] here; uint8 everywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class StepOutput:
    """What one training step says of a batch."""

    loss: Tensor
    """Scalar to minimise by back-propagation."""
    objective: Tensor
    """Scalar, detached: the mean of the reported loss over the batch (negative log-likelihood or squared error)."""
    cluster_B: Tensor
    """int64: prototype of each image."""


@dataclass(frozen=True)
class Assignment:
    """Which prototype explains each image, and how well."""

    cluster_B: Tensor
    """int64: index of the prototype with the largest posterior."""
    loss_B: Tensor
    """Negative log-likelihood of the image under the mixture (GMM), or squared error per pixel (K-means)."""
    posterior_B: Tensor
    """Posterior probability of `cluster_B`, in [0, 1]."""
    runner_up_B: Tensor
    """int64: the second best prototype; the best one where there is only one."""
    margin_B: Tensor
    """How much worse the runner-up is, >= 0: log posterior ratio (GMM) or difference of squared errors (K-means)."""
    parameters: dict[str, Tensor]
    """Per active module: (B, p) transformation parameters of the chosen prototype; all zero is the identity."""


class ClusteringMethod(Protocol):
    """Built from a configuration and a sample of images; knows neither data set nor optimiser."""

    def loss(self, images_BCHW: Tensor) -> StepOutput:
        """One training step's loss on a batch of float images in [0, 1]."""

    def assign(self, images_BCHW: Tensor) -> Assignment:
        """The prototype of each image, without gradients."""

    def prototypes_KCHW(self) -> Tensor:
        """The prototypes as images, clamped to [0, 1]."""

    def shares_K(self) -> Tensor:
        """Mixing proportions, summing to 1 (equal ones for K-means)."""

    def transform(self, cluster_B: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """(B, C, H, W): prototypes `cluster_B` transformed by `parameters`, clamped to [0, 1]."""

    def align_back(self, images_BCHW: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """(B, C, H, W): images as seen from their prototype: the inverse transformation applied to them."""
