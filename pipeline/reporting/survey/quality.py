"""Label-free quality of a cluster: whether its prototype is an iconic view or an average of noise.

Most photos of a hashtag are noise, and noise gets prototypes as well. The two are distinguished by how much alignment
explains beyond the unaligned mean of the same photos. For an iconic view, whose photos differ in viewpoint and light,
it explains nearly everything; for unrelated pictures, little more than their mean does. The score is computed on
**outlines**: differences between neighbouring pixels of the images at 16x16 px. For n photos, where t_i is the
prototype aligned to photo i,

    detail           = 1 - n / (n - 1) * sum_i |outlines(photo_i) - outlines(t_i)|^2  / sum_i |outlines(photo_i)|^2
    unaligned_detail = 1 - n / (n - 1) * sum_i |outlines(photo_i) - outlines(mean)|^2 / sum_i |outlines(photo_i)|^2
    quality          = 1 - (1 - detail) / max(1 - unaligned_detail, 1/2)

Quality is high only if all criteria of an iconic view are met: the prototype has outlines, so it is not a blur; the
photos are alike once they are aligned, since a misplaced outline is penalised twice, where it is and where it should
be; and alignment is necessary to make them alike. Simpler measures fail:

- The same ratio on *pixels* (`explained`) rewards smooth pictures such as skies, walls and gradients, which any smooth
  prototype explains once its colours are fitted.
- On edges at *full resolution*, an alignment that is off by one pixel explains nothing, so a model whose training ended
  early would rank its views below its noise. At 16 px, such an alignment counts as nearly correct.
- *Detail alone* is high for noise with a common outline, such as a dark frame, which the mean has as well.
- The *margin* to the runner-up measures how different a cluster is from others, not how good it is; it is as large for
  noise. The *loss* of a photo depends on its contrast.

The bound of 1/2 is for photos that are alike without alignment: their mean explains them already, which must not lower
the score. The factor n / (n - 1) corrects for small clusters, whose prototype and mean contain each of the few photos:
a prototype of one photo explains this photo perfectly, which proves nothing. tests/benchmarks/bench_quality.py
measures the score on crawls with known noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipeline.reporting.survey.sums import ClusterSums, edge_energy, outline_energy

MIN_LEFT_BY_MEAN = 0.5
"""Lower bound of the part of the outlines that the mean image does not explain."""
NEGLIGIBLE = 1e-6
"""Mean squared difference of values in [0, 1] that counts as zero: a quarter of one of 255 grey levels, squared."""


@dataclass(frozen=True)
class Quality:
    """The score of one cluster and its components; a component is None if it is undefined, as for too few images."""

    quality: float
    """Score by which clusters are ordered, in [0, 1]; 0 if it would be negative or is undefined."""
    detail: float | None
    """Part of the photos' outlines that the aligned prototype explains, at most 1; corrected for the cluster's size."""
    unaligned_detail: float | None
    """Part of the photos' outlines that their unaligned mean image explains, corrected in the same way."""
    explained: float | None
    """Part of the photos' variance around their mean image that alignment explains, at most 1."""
    sharpness: float | None
    """Ratio of the mean squared edges of the prototype to those of the photos; 1 means as sharp as a photo."""
    spread: float | None
    """Root mean square difference per pixel and channel between photos aligned back and the prototype, in [0, 1]."""
    median_margin: float | None
    """Median of the margins to the runner-up, in the unit of the loss."""


def quality_of(sums: ClusterSums, prototype_CHW: Tensor, median_margin: float | None) -> Quality:
    """Return the score of a cluster.

    Args:
        sums: sums over the images of the cluster.
        prototype_CHW: its prototype, float in [0, 1].
        median_margin: median margin of its images; None if it has no images.
    """
    n = sums.images
    if n < 2:
        return Quality(0.0, None, None, None, None, None, median_margin)
    mean = sums.mean_CHW
    values = n * mean.numel()
    spread = float((sums.deviation_CHW.mean() / n).sqrt())
    variation = sums.energy - n * float(mean.double().square().sum())
    explained = 1 - sums.residual / variation if variation > NEGLIGIBLE * values else None
    if sums.outlines < NEGLIGIBLE * values:
        return Quality(0.0, None, None, explained, None, spread, median_margin)
    correction = n / (n - 1)
    unexplained = correction * sums.outline_residual / sums.outlines
    left_over = correction * max(0.0, sums.outlines - n * outline_energy(mean[None])) / sums.outlines
    quality = 1 - unexplained / max(left_over, MIN_LEFT_BY_MEAN)
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
