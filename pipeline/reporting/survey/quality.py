"""How good a cluster is, without labels: whether its prototype is an iconic view or an average of noise.

Most photos of a hashtag are noise, and noise gets prototypes as well. What tells the two apart is how much alignment
explains over the unaligned mean of the same photos: of an iconic view, whose photos differ in viewpoint and light,
nearly everything; of unrelated pictures little more than their mean does. It is measured on **outlines**: differences
between neighbouring pixels of the images at 16x16 px. With n photos, of which the prototype aligned to each is t_i,

    detail           = 1 - n / (n - 1) * sum_i |outlines(photo_i) - outlines(t_i)|^2  / sum_i |outlines(photo_i)|^2
    unaligned_detail = 1 - n / (n - 1) * sum_i |outlines(photo_i) - outlines(mean)|^2 / sum_i |outlines(photo_i)|^2
    quality          = 1 - (1 - detail) / max(1 - unaligned_detail, 1/2)

It is high only where everything that makes a view iconic holds at once. The prototype has outlines, so it is not a
blur; the photos are alike once aligned, since an outline out of place costs twice, where it is and where it should be;
and alignment is what finds them. Why not something simpler:

- On *pixels* the same ratio (`explained`) rewards smooth pictures such as skies, walls and gradients, which any smooth
  prototype explains once its colours are fitted.
- On edges at *full resolution* alignment that is a pixel off counts as none: a model whose training ended early would
  have its views behind its noise. At 16 px it counts as what it is.
- *Detail alone* is high for noise that has a common outline, such as a dark frame; their mean has it, too.
- The *margin* to the runner-up tells how different a cluster is, not how good: that of noise is as large. The *loss* of
  a photo depends on its contrast.

The 1/2 is for photos that are alike as they are, of which alignment cannot explain more than their mean: that is no
fault. The factor n / (n - 1) is for small clusters, whose prototype and mean have each of their few photos in them: a
prototype of one photo explains that photo, which proves nothing. What the score is worth on crawls whose noise is
known is measured by tests/benchmarks/bench_quality.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipeline.reporting.survey.sums import ClusterSums, edge_energy, outline_energy

LEAST_TO_GAIN = 0.5
"""Part of the outlines that counts as left over by the mean image, even if it is less."""
NOTHING = 1e-6
"""Mean squared difference of values in [0, 1] below which there is none: a quarter of one of 255 levels."""


@dataclass(frozen=True)
class Quality:
    """The score of one cluster and what it is made of; None where the cluster has too few images to tell."""

    quality: float
    """What clusters are ordered by, in [0, 1]; 0 where it would be negative or cannot be told."""
    detail: float | None
    """Part of the photos' outlines that the aligned prototype explains, at most 1; corrected for the cluster's size."""
    unaligned_detail: float | None
    """The same of the unaligned mean image: what could be explained without alignment."""
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
    if sums.outlines < NOTHING * values:
        return Quality(0.0, None, None, explained, None, spread, median_margin)
    correction = n / (n - 1)
    unexplained = correction * sums.outline_residual / sums.outlines
    left_over = correction * max(0.0, sums.outlines - n * outline_energy(mean[None])) / sums.outlines
    quality = 1 - unexplained / max(left_over, LEAST_TO_GAIN)
    sharpness = n * edge_energy(prototype_CHW) / sums.edges
    return Quality(
        quality=max(0.0, quality),
        detail=1 - unexplained,
        unaligned_detail=1 - left_over,
        explained=explained,
        sharpness=sharpness,
        spread=spread,
        median_margin=median_margin,
    )
