"""Example images of each cluster, and how many of them fit on the page."""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.reporting.pictures.thumbnails import ThumbnailForm
from pipeline.reporting.tables.manifest import first_images, loss_column, nearest_of

PAGE_BYTES = 14_500_000
"""Maximum size of a page, for any number of clusters."""
TEXT_BYTES, CLUSTER_BYTES, NAMED_CLUSTER_BYTES, EXAMPLE_BYTES = 1_000_000, 7_000, 15_000, 1_000
"""Size of the text of a page: the fixed part, per cluster, per cluster whose bars have names, and per example."""
MAX_CLUSTERS_WITH_BAR_NAMES = 100
"""Maximum number of clusters for which the bars of their charts have names."""
BASE64_FACTOR = 4 / 3
"""Bytes on the page per byte of a picture, which is encoded as base64."""
THUMBNAIL_SIDES = {96: 2_200, 64: 1_100, 48: 600}
"""Possible sides of thumbnails in px, and the bytes that a photo of that side needs for a good quality."""
PICTURES_PER_CLUSTER = 6
"""Size of the other pictures of a cluster, in thumbnails: the prototype (large, shown twice), mean and deviation."""
PICTURES_PER_EXAMPLE, GROUPS = 3, 3
"""Photo, aligned prototype and photo aligned back; nearest, random and farthest images."""
MIN_EXAMPLES = 3
"""Number of examples per group below which thumbnails become smaller rather than fewer."""
MAX_UNEXPLAINED = 24
"""Maximum number of unexplained images on the page."""
OUTLIER_RANGES = 1.5
"""An image is an outlier if its loss is this many interquartile ranges above the third quartile (Tukey's fence)."""


@dataclass(frozen=True)
class Examples:
    """Example images of one cluster, as rows of the clusters table; an image of several crawls occurs once."""

    nearest: pa.Table
    """Images with the lowest loss, lowest first."""
    random: pa.Table
    """A random sample, which is the same in every report on these images."""
    farthest: pa.Table
    """Images with the highest loss, highest first."""


@dataclass(frozen=True)
class ExampleBudget:
    """Number and size of the examples that fit on a page."""

    examples: int
    """Number of examples in each group of a cluster."""
    form: ThumbnailForm
    """Size limits of each thumbnail."""


def example_budget(k: int, wanted: int) -> ExampleBudget:
    """Return the number of examples per group, at most `wanted`, and their size, so that a page of `k` clusters fits.

    Thumbnails are as large as possible with at least `MIN_EXAMPLES` per group (or `wanted`, if that is less). There are
    no examples if not even the smallest thumbnails fit.
    """
    best = ExampleBudget(0, ThumbnailForm(min(THUMBNAIL_SIDES), _bytes_per_picture(k, 0)))
    for side_px, needed_bytes in THUMBNAIL_SIDES.items():
        fitting = [n for n in range(1, wanted + 1) if _bytes_per_picture(k, n) >= needed_bytes]
        if fitting and (best.examples == 0 or best.examples < min(MIN_EXAMPLES, wanted)):
            best = ExampleBudget(fitting[-1], ThumbnailForm(side_px, _bytes_per_picture(k, fitting[-1])))
    return best


def _bytes_per_picture(k: int, n: int) -> int:
    """Return the maximum size of each picture if a page shows `n` examples per group of `k` clusters."""
    cluster_bytes = NAMED_CLUSTER_BYTES if k <= MAX_CLUSTERS_WITH_BAR_NAMES else CLUSTER_BYTES
    text = TEXT_BYTES + k * cluster_bytes + k * n * GROUPS * EXAMPLE_BYTES
    pictures = k * (PICTURES_PER_CLUSTER + n * GROUPS * PICTURES_PER_EXAMPLE) + PICTURES_PER_EXAMPLE * MAX_UNEXPLAINED
    return max(0, int((PAGE_BYTES - text) / BASE64_FACTOR / pictures))


def examples_of(members: pa.Table, n: int) -> Examples:
    """Return at most `n` images of each group; `members` are the rows of one cluster, lowest loss first."""
    return Examples(nearest_of(members, n), random_rows(members, n), farthest_rows(members, n))


def random_rows(rows: pa.Table, n: int) -> pa.Table:
    """Return a uniform sample of `n` distinct images of `rows`.

    The sample consists of the images whose ids have the smallest digests, so it is deterministic and does not depend
    on the order of the rows.
    """
    row_of: dict[str, int] = {}
    for row, image_id in enumerate(rows["image_id"].to_pylist()):
        row_of.setdefault(image_id, row)
    sample = heapq.nsmallest(n, row_of, key=lambda image_id: hashlib.blake2b(image_id.encode(), digest_size=8).digest())
    return rows.take(pa.array([row_of[image_id] for image_id in sample], pa.int64()))


def farthest_rows(rows: pa.Table, n: int) -> pa.Table:
    """Return the `n` distinct images of `rows` with the highest loss, highest first."""
    losses = rows[loss_column(rows.schema)].to_numpy()
    return first_images(rows, map(int, np.argsort(-losses, kind="stable")), n)


def unexplained_rows(clusters: pa.Table) -> tuple[float, pa.Table]:
    """Return the loss above which an image is an outlier (`OUTLIER_RANGES`), and the rows above it, highest first."""
    losses = clusters[loss_column(clusters.schema)].to_numpy()
    low, high = np.quantile(losses, [0.25, 0.75]) if len(losses) else (0.0, 0.0)
    threshold = float(high + OUTLIER_RANGES * (high - low))
    order = np.argsort(-losses, kind="stable")
    return threshold, clusters.take(pa.array(order[losses[order] > threshold]))
