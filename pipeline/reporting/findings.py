"""What a run found, computed whole before anything of it is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.clustering.model.method import ClusteringMethod
from pipeline.config import ReportingConfig
from pipeline.reporting.pictures.mosaic import Tile, ordered
from pipeline.reporting.pictures.pixels import to_pictures
from pipeline.reporting.pictures.thumbnails import ThumbnailForm
from pipeline.reporting.survey.examples import (
    MOST_UNEXPLAINED,
    Examples,
    examples_of,
    farthest_rows,
    room_for,
    unexplained_rows,
)
from pipeline.reporting.survey.quality import Quality, quality_of
from pipeline.reporting.survey.sums import ClusterSums
from pipeline.reporting.survey.survey import ImageKey, Thumbnails, image_keys, survey_clusters
from pipeline.reporting.tables.manifest import by_cluster, median_margin
from pipeline.storage import Storage


@dataclass(frozen=True)
class Findings:
    """The clusters of a trained model, and which images stand for them."""

    clusters: pa.Table
    """As `manifest.clusters_table` made it."""
    tiles: Sequence[Tile]
    """The prototypes in the order in which they are shown, empty clusters included."""
    qualities: Sequence[Quality]
    """One per cluster, in the model's order, as are the next three."""
    proportions: Sequence[float]
    """Mixing proportions."""
    sums: Sequence[ClusterSums]
    examples: Mapping[int, Examples]
    """By cluster; empty where examples are left out."""
    fence: float
    """Loss above which no prototype explains an image."""
    unexplained: int
    """Images above it."""
    worst: pa.Table
    """Rows of the worst of them, worst first; none where examples are left out."""
    thumbnails: Mapping[ImageKey, Thumbnails]
    """Of all examples and of `worst`."""
    form: ThumbnailForm


def find(
    storage: Storage,
    checkpoint: str,
    collection: str,
    method: ClusteringMethod,
    clusters: pa.Table,
    options: ReportingConfig,
) -> Findings:
    """What there is to report of `clusters`, from one more pass over the shards in Ray tasks.

    Args:
        storage: workspace with the shards and the model; it travels to the tasks.
        checkpoint: key of the trained model.
        collection: that the crawls belong to.
        method: that model.
        clusters: as `manifest.clusters_table` made it.
        options: what the user wants to see.
    """
    prototypes_KCHW = method.prototypes_KCHW()
    k = len(prototypes_KCHW)
    room = room_for(k, options.page_images if options.examples else 0)
    apart = by_cluster(clusters, k)
    examples = {c: examples_of(members, room.examples) for c, members in enumerate(apart)} if room.examples else {}
    fence, unexplained = unexplained_rows(clusters)
    worst = farthest_rows(unexplained, MOST_UNEXPLAINED if examples else 0)
    shown = [worst, *(rows for three in examples.values() for rows in (three.nearest, three.random, three.farthest))]
    keys = {key for rows in shown for key in image_keys(rows)}
    survey = survey_clusters(storage, checkpoint, collection, clusters, keys, room.form)
    sums = [survey.sums_of(cluster, tuple(prototypes_KCHW.shape[1:])) for cluster in range(k)]
    qualities = [
        quality_of(own, prototype_CHW, median_margin(members))
        for own, prototype_CHW, members in zip(sums, prototypes_KCHW, apart, strict=True)
    ]
    sizes = [members.num_rows for members in apart]
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
        fence=fence,
        unexplained=unexplained.num_rows,
        worst=worst,
        thumbnails=survey.thumbnails,
        form=room.form,
    )
