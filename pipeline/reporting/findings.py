"""The findings of a run: everything that a report shows, computed before anything is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.clustering.model.method import ClusteringMethod
from pipeline.reporting.pictures.mosaic import Tile, ordered
from pipeline.reporting.pictures.thumbnails import ThumbnailForm
from pipeline.reporting.pixels import to_pictures
from pipeline.reporting.run import Run
from pipeline.reporting.survey.examples import (
    MAX_UNEXPLAINED,
    Examples,
    example_budget,
    examples_of,
    farthest_rows,
    unexplained_rows,
)
from pipeline.reporting.survey.quality import Quality, quality_of
from pipeline.reporting.survey.sums import ClusterSums
from pipeline.reporting.survey.survey import ImageKey, Thumbnails, image_keys, survey_clusters
from pipeline.reporting.tables.manifest import by_cluster, median_margin
from pipeline.storage import Storage


@dataclass(frozen=True)
class Findings:
    """The clusters of a trained model, their statistics and their example images."""

    clusters: pa.Table
    """One row per image; see `manifest.clusters_table`."""
    tiles: Sequence[Tile]
    """One tile per prototype, in display order, including empty clusters."""
    qualities: Sequence[Quality]
    """Quality of each cluster, in the model's order."""
    proportions: Sequence[float]
    """Mixing proportion of each cluster, in the model's order."""
    sums: Sequence[ClusterSums]
    """Sums over the images of each cluster, in the model's order."""
    examples: Mapping[int, Examples]
    """Example images by cluster; empty if the report shows no examples."""
    unexplained_above: float
    """Loss above which no prototype explains an image."""
    unexplained: int
    """Number of images whose loss is above `unexplained_above`."""
    worst: pa.Table
    """Rows of the unexplained images with the highest loss, highest first; none if the report shows no examples."""
    thumbnails: Mapping[ImageKey, Thumbnails]
    """Thumbnails of all examples and of `worst`."""
    form: ThumbnailForm
    """Size limits of the thumbnails."""


def compute_findings(storage: Storage, run: Run, method: ClusteringMethod, clusters: pa.Table) -> Findings:
    """Return the findings of a run, computed by another pass over the shards in Ray tasks.

    Args:
        storage: workspace with the shards and the model.
        run: the run to report.
        method: the model of the kept trial.
        clusters: one row per image; see `manifest.clusters_table`.
    """
    options = run.config.reporting
    prototypes_KCHW = method.prototypes_KCHW()
    k = len(prototypes_KCHW)
    budget = example_budget(k, options.page_images if options.examples else 0)
    members_by_cluster = by_cluster(clusters, k)
    examples = {}
    if budget.examples:
        examples = {c: examples_of(members, budget.examples) for c, members in enumerate(members_by_cluster)}
    threshold, unexplained = unexplained_rows(clusters)
    worst = farthest_rows(unexplained, MAX_UNEXPLAINED if examples else 0)
    tables = [worst, *(rows for group in examples.values() for rows in (group.nearest, group.random, group.farthest))]
    keys = {key for rows in tables for key in image_keys(rows)}
    survey = survey_clusters(storage, run, clusters, keys, budget.form)
    sums = [survey.sums_of(cluster, tuple(prototypes_KCHW.shape[1:])) for cluster in range(k)]
    qualities = [
        quality_of(cluster_sums, prototype_CHW, median_margin(members))
        for cluster_sums, prototype_CHW, members in zip(sums, prototypes_KCHW, members_by_cluster, strict=True)
    ]
    sizes = [members.num_rows for members in members_by_cluster]
    tiles = [
        Tile(cluster, size, size / max(1, clusters.num_rows), picture, quality.quality)
        for cluster, (size, picture, quality) in enumerate(
            zip(sizes, to_pictures(prototypes_KCHW), qualities, strict=True)
        )
    ]
    return Findings(
        clusters=clusters,
        tiles=ordered(tiles, options.order_by),
        qualities=qualities,
        proportions=method.shares_K().tolist(),
        sums=sums,
        examples=examples,
        unexplained_above=threshold,
        unexplained=unexplained.num_rows,
        worst=worst,
        thumbnails=survey.thumbnails,
        form=budget.form,
    )
