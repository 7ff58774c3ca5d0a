"""Transformation-invariant (TI) baselines: every image's parameters are optimised directly (DTI paper, equation 2).

No network predicts how a prototype aligns to an image: gradient descent finds it, from the identity, at every
iteration and again at assignment. It costs many times a prediction, and with many parameters it finds worse
alignments; that is what the paper compares with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.clustering.model.dti import DTI, DTIGaussianMixture, DTIKMeans
from pipeline.config import ClusteringConfig


class _DirectAlignment(DTI):
    """Takes the place of the predictors."""

    def _build_predictors(self, config: ClusteringConfig) -> None:
        self.alignment_steps = config.alignment_steps
        self.alignment_learning_rate = config.alignment_learning_rate

    def _predict(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Per active module: (B, K, p), after `alignment_steps` of Adam on the score of every pair by itself."""
        if not self.active_modules:
            return {}
        canvas = self.canvas().detach()
        parts = [self._align(canvas[part], images_BCHW) for part in self._prototypes_at_once(images_BCHW)]
        return {name: torch.cat([part[name] for part in parts]).transpose(0, 1) for name in self.active_names}

    @torch.enable_grad()
    def _align(self, canvas: Tensor, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Per active module: (K', B, p) for K' canvases."""
        shape = (len(canvas), len(images_BCHW))
        parameters = {
            name: canvas.new_zeros(*shape, self.sequence.sizes[name]).requires_grad_() for name in self.active_names
        }
        optimizer = torch.optim.Adam(parameters.values(), lr=self.alignment_learning_rate)
        for _ in range(self.alignment_steps):
            transformed = self.sequence.transform_each(canvas, parameters)
            # Pairs share no parameters, so the sum descends along each pair's own gradient.
            loss = -self.pair_scores(transformed, images_BCHW, self.pixel_weights_HW).sum()
            for beta, gradient in zip(
                parameters.values(), torch.autograd.grad(loss, list(parameters.values())), strict=True
            ):
                beta.grad = gradient
            optimizer.step()
        return {name: beta.detach() for name, beta in parameters.items()}


class TIGaussianMixture(_DirectAlignment, DTIGaussianMixture):
    """The mixture of `DTIGaussianMixture` under directly optimised transformations."""


class TIKMeans(_DirectAlignment, DTIKMeans):
    """The K-means of `DTIKMeans` under directly optimised transformations."""
