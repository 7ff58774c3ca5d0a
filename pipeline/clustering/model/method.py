"""The interface that every clustering method implements.

Shapes: B images, K prototypes, P chosen (image, prototype) pairs, C channels, H x W pixels.
Images are float32 in [0, 1] here; uint8 everywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


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
    """int64: index of the second-best prototype, or of the only prototype if K is 1."""
    margin_B: Tensor
    """Margin to the runner-up, >= 0: log posterior ratio (GMM) or difference of squared errors (K-means)."""
    parameters: dict[str, Tensor]
    """Transformation parameters (B, p) of the chosen prototype, for each active module; zeros are the identity."""


@dataclass(frozen=True)
class StepOutput:
    """Result of one training step on a batch."""

    loss: Tensor
    """Scalar to minimise by back-propagation."""
    objective: Tensor
    """Scalar, detached: mean of the reported loss over the batch (negative log-likelihood or squared error)."""
    assigned: Assignment
    """Assignment of the images of the batch, detached; with screening, the runner-up is one of the survivors."""


class ClusteringMethod(Protocol):
    """A method is built from a configuration and initial prototypes, and holds neither data set nor optimiser."""

    def loss(self, images_BCHW: Tensor) -> StepOutput:
        """Return the loss of one training step on a batch of float images in [0, 1]."""

    def assign(self, images_BCHW: Tensor) -> Assignment:
        """Assign each image to a prototype, without gradients."""

    def prototypes_KCHW(self) -> Tensor:
        """Return the prototypes as images, clamped to [0, 1]."""

    def shares_K(self) -> Tensor:
        """Return the mixing proportions, which sum to 1 (equal ones for K-means)."""

    def transform(self, cluster_B: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """Return prototypes `cluster_B` transformed by `parameters` (B, C, H, W), clamped to [0, 1]."""

    def align_back(self, images_BCHW: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """Return images aligned to their prototypes by the inverse transformation (B, C, H, W), clamped to [0, 1]."""
