"""Sums over the images of a cluster, which one pass over the shards computes in any number of parts.

Shapes: B images, C channels, H x W pixels. Images are float32 in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

OUTLINE_PX = 16
"""Side of the downsampled images whose edges are the outlines."""


@dataclass
class ClusterSums:
    """Sums over the images of one cluster; `+=` adds another part."""

    images: int
    """Number of images."""
    pixels_CHW: Tensor
    """float32: sum of the unaligned photos; divided by `images`, it is the unaligned mean image."""
    deviation_CHW: Tensor
    """float32: sum of squared differences between photos aligned back and the prototype."""
    energy: float = 0.0
    """Sum of the photos' squared pixel values."""
    residual: float = 0.0
    """Sum of squared differences between photos and the prototype aligned to them."""
    edges: float = 0.0
    """Sum of the photos' squared edges; see `edge_energy`."""
    outlines: float = 0.0
    """Sum of the photos' squared outlines; see `outline_energy`."""
    outline_residual: float = 0.0
    """Sum of squared differences between the outlines of photos and those of the prototype aligned to them."""

    @classmethod
    def zeros(cls, shape: tuple[int, ...]) -> ClusterSums:
        """Return the sums over no images, where images have the shape (C, H, W) = `shape`."""
        return cls(0, torch.zeros(shape), torch.zeros(shape))

    def add(self, photos: Tensor, transformed: Tensor, aligned: Tensor, prototype_CHW: Tensor) -> None:
        """Add images of this cluster.

        Args:
            photos: (B, C, H, W).
            transformed: (B, C, H, W), the prototype aligned to each photo.
            aligned: (B, C, H, W), each photo aligned back to the prototype.
            prototype_CHW: the prototype.
        """
        self.images += len(photos)
        self.pixels_CHW += photos.sum(0)
        self.deviation_CHW += (aligned - prototype_CHW).square().sum(0)
        difference = photos - transformed
        self.energy += float(photos.double().square().sum())
        self.residual += float(difference.double().square().sum())
        self.edges += edge_energy(photos)
        self.outlines += outline_energy(photos)
        self.outline_residual += outline_energy(difference)

    def __iadd__(self, other: ClusterSums) -> ClusterSums:
        self.images += other.images
        self.pixels_CHW += other.pixels_CHW
        self.deviation_CHW += other.deviation_CHW
        self.energy += other.energy
        self.residual += other.residual
        self.edges += other.edges
        self.outlines += other.outlines
        self.outline_residual += other.outline_residual
        return self

    @property
    def mean_CHW(self) -> Tensor:
        """Mean of the unaligned photos; zeros if there are no photos."""
        return self.pixels_CHW / max(1, self.images)

    @property
    def deviation_HW(self) -> Tensor:
        """Root mean square deviation per pixel, over images and channels; zeros if there are no photos."""
        return (self.deviation_CHW.mean(0) / max(1, self.images)).sqrt()


def edge_energy(images: Tensor) -> float:
    """Return the sum of squared differences between each pixel of (..., H, W) and its right and lower neighbours."""
    values = images.double()
    return float(values.diff(dim=-1).square().sum() + values.diff(dim=-2).square().sum())


def outline_energy(images: Tensor) -> float:
    """Return `edge_energy` of (B, C, H, W) images averaged down to `OUTLINE_PX`; smaller sides keep their size."""
    height, width = images.shape[-2:]
    return edge_energy(adaptive_avg_pool2d(images, (min(height, OUTLINE_PX), min(width, OUTLINE_PX))))
