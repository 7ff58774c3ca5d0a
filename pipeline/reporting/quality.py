"""How good a cluster is, without labels: whether its prototype is an iconic view or an average of noise.

Most photos of a hashtag are noise, and noise gets prototypes as well. What tells the two apart is **detail**: the part
of the edges of a cluster's photos that the aligned prototype explains,

    1 - n / (n - 1) * sum_i |edges(photo_i) - edges(aligned prototype_i)|^2 / sum_i |edges(photo_i)|^2

where edges are differences between neighbouring pixels and i runs over the n photos of the cluster. It is high only
where everything that makes a view iconic holds at once:

- The prototype is *sharp*: a blurred one has no edges that could explain any.
- The photos are *alike once aligned*: an edge that is out of place costs twice, where it is and where it should be.
- *Alignment* finds them: of the same photos the unaligned mean image, which has next to no edges, explains little.

On pixels themselves the same ratio (`explained`) rewards the wrong clusters: smooth pictures such as skies, walls and
gradients are explained by any smooth prototype once its colours are fitted. The margin to the runner-up tells how
*different* a cluster is, not how good: that of noise is as large. And the loss of a photo depends on its contrast.
The factor n / (n - 1) is for small clusters, whose prototype has each of its few photos in it: a prototype of one
photo explains that photo, which proves nothing. What this is worth on crawls whose noise is known is measured by
tests/benchmarks/bench_quality.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipeline.reporting.sums import ClusterSums, edge_energy

NOTHING = 1e-6
"""Mean squared difference of values in [0, 1] below which there is none: a quarter of one of 255 levels."""


@dataclass(frozen=True)
class Quality:
    """The score of one cluster and what it is made of; None where the cluster has too few images to tell."""

    quality: float
    """What clusters are ordered by, in [0, 1]: `detail`, and 0 where that is negative or cannot be told."""
    detail: float | None
    """Part of the photos' edges that the aligned prototype explains, at most 1; corrected for the cluster's size."""
    unaligned_detail: float | None
    """`detail` of the mean image in place of the prototype: what it would be without alignment."""
    explained: float | None
    """Part of the photos' variance around their mean image that alignment explains, at most 1."""
    sharpness: float | None
    """Edges of the prototype over those of a photo, mean squares; 1 is as sharp as a photo."""
    spread: float | None
    """Root mean square of photos aligned back minus the prototype, per pixel and channel, in [0, 1]: 0 is tightest."""
    median_margin: float | None
    """Median of the margins to the runner-up, in the unit of the loss."""


def quality_of(sums: ClusterSums, prototype_CHW: Tensor, median_margin: float | None) -> Quality:
    """The score of a cluster.

    Args:
        sums: over its images.
        prototype_CHW: its prototype, float in [0, 1].
        median_margin: of its images; None where it has none.
    """
    n = sums.images
    if n < 2:
        return Quality(0.0, None, None, None, None, None, median_margin)
    mean = sums.mean_CHW
    values = n * mean.numel()
    spread = float((sums.deviation_CHW.mean() / n).sqrt())
    variation = sums.energy - n * float(mean.double().square().sum())
    explained = 1 - sums.residual / variation if variation > NOTHING * values else None
    if sums.edge_energy < NOTHING * values:
        return Quality(0.0, None, None, explained, None, spread, median_margin)
    correction = n / (n - 1)
    detail = 1 - correction * sums.edge_residual / sums.edge_energy
    unaligned = 1 - correction * (sums.edge_energy - n * edge_energy(mean)) / sums.edge_energy
    sharpness = n * edge_energy(prototype_CHW) / sums.edge_energy
    return Quality(max(0.0, detail), detail, unaligned, explained, sharpness, spread, median_margin)
