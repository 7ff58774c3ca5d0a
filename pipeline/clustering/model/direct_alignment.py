"""Transformation-invariant (TI) baselines: every image's parameters are optimised directly (DTI paper, equation 2).

No network predicts how a prototype aligns to an image: gradient descent finds the alignment, starting at the identity,
in every iteration and again at assignment. This takes many times as long as a prediction, and with many parameters it
finds worse alignments; the paper uses it as a baseline.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.clustering.model.dti import DTI, DTIGaussianMixture, DTIKMeans
from pipeline.config import ClusteringConfig


class _DirectAlignment(DTI):
    """Optimises transformation parameters directly, in place of networks that predict them."""

    def _build_predictors(self, config: ClusteringConfig) -> None:
        self.alignment_steps = config.alignment_steps
        self.alignment_learning_rate = config.alignment_learning_rate

    def predict(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return parameters (B, K, p) of each active module, after `alignment_steps` of Adam on each pair's score."""
        if not self.predicted_modules:
            return {}
        canvas = self.canvas().detach()
        parts = [self._align(canvas[part], images_BCHW) for part in self._prototypes_at_once(images_BCHW)]
        return {name: torch.cat([part[name] for part in parts]).transpose(0, 1) for name in parts[0]}

    @torch.enable_grad()
    def _align(self, canvas: Tensor, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the parameters (K', B, p) of each active module, for K' canvases."""
        shape = (len(canvas), len(images_BCHW))
        parameters = {
            name: canvas.new_zeros(*shape, self.sequence.sizes[name]).requires_grad_() for name in self.predicted_names
        }
        optimizer = torch.optim.Adam(parameters.values(), lr=self.alignment_learning_rate)
        images = self._prepared(images_BCHW)
        for _ in range(self.alignment_steps):
            transformed = self.sequence.transform_each(canvas, parameters)
            # Pairs share no parameters, so the gradient of the sum consists of the gradients of the pairs.
            loss = -self._each_score(transformed, images, self.pixel_weights_HW).sum()
            for beta, gradient in zip(
                parameters.values(), torch.autograd.grad(loss, list(parameters.values())), strict=True
            ):
                beta.grad = gradient
            optimizer.step()
        return {name: beta.detach() for name, beta in parameters.items()}


class TIGaussianMixture(_DirectAlignment, DTIGaussianMixture):
    """The mixture of `DTIGaussianMixture` with directly optimised transformations."""


class TIKMeans(_DirectAlignment, DTIKMeans):
    """The K-means of `DTIKMeans` with directly optimised transformations."""
