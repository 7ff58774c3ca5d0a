"""Which images stand for a cluster on the page, and how many of them a page has room for."""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.reporting.pictures.thumbnails import ThumbnailForm
from pipeline.reporting.tables.manifest import first_images, loss_column, nearest_of

PAGE_BYTES = 14_500_000
"""Of a page, whatever it shows."""
TEXT_BYTES, CLUSTER_BYTES, NAMED_CLUSTER_BYTES, EXAMPLE_BYTES = 1_000_000, 7_000, 15_000, 1_000
"""What is written: once, for each cluster, for each whose bars have names, for each example."""
MOST_NAMED = 100
"""Clusters up to which the bars of their charts have names."""
BASE64 = 4 / 3
"""Bytes in a page for each byte of a picture."""
SIDES = {96: 2_200, 64: 1_100, 48: 600}
"""Sides of thumbnails in px, and the bytes that a photo of that side needs to look well."""
PICTURES_PER_CLUSTER = 6
"""In thumbnails: the prototype, large and twice, its mean image and its deviations."""
PICTURES_PER_EXAMPLE, GROUPS = 3, 3
FEWEST = 3
"""Examples per group for which smaller thumbnails are taken rather than fewer of them."""
MOST_UNEXPLAINED = 24
FENCE = 1.5
"""Interquartile ranges above the third quartile from which on a loss is an outlier's (Tukey)."""


@dataclass(frozen=True)
class Examples:
    """Rows of the clusters table of images of one cluster; one that several crawls brought counts once."""

    nearest: pa.Table
    """Best explained first."""
    random: pa.Table
    """The same ones in every report on these images."""
    farthest: pa.Table
    """Worst explained first."""


@dataclass(frozen=True)
class Room:
    """What a page has room for."""

    examples: int
    """Of each group of a cluster."""
    form: ThumbnailForm


def room_for(k: int, wanted: int) -> Room:
    """How many of the `wanted` examples per group, and of what size, a page of `k` clusters can show.

    Larger thumbnails as long as there are at least `FEWEST` of each group; none where not even small ones fit.
    """
    best = Room(0, ThumbnailForm(min(SIDES), _share(k, 0)))
    for side_px, needed_bytes in SIDES.items():
        fitting = [n for n in range(1, wanted + 1) if _share(k, n) >= needed_bytes]
        if fitting and (best.examples == 0 or best.examples < min(FEWEST, wanted)):
            best = Room(fitting[-1], ThumbnailForm(side_px, _share(k, fitting[-1])))
    return best


def _share(k: int, n: int) -> int:
    """Bytes that each picture may have where a page shows `n` examples per group of `k` clusters."""
    text = TEXT_BYTES + k * (NAMED_CLUSTER_BYTES if k <= MOST_NAMED else CLUSTER_BYTES) + k * n * GROUPS * EXAMPLE_BYTES
    pictures = k * (PICTURES_PER_CLUSTER + n * GROUPS * PICTURES_PER_EXAMPLE) + PICTURES_PER_EXAMPLE * MOST_UNEXPLAINED
    return max(0, int((PAGE_BYTES - text) / BASE64 / pictures))


def examples_of(members: pa.Table, n: int) -> Examples:
    """At most `n` images of each kind; `members` are the rows of one cluster, best explained first."""
    return Examples(nearest_of(members, n), random_rows(members, n), farthest_rows(members, n))


def random_rows(rows: pa.Table, n: int) -> pa.Table:
    """`n` different images of `rows`, each as likely as any other.

    A reservoir that needs no random numbers: it keeps the images whose ids have the smallest digests, so that it
    depends neither on the order of the rows nor on how they came together.
    """
    first: dict[str, int] = {}
    for row, image_id in enumerate(rows["image_id"].to_pylist()):
        first.setdefault(image_id, row)
    drawn = heapq.nsmallest(n, first, key=lambda image_id: hashlib.blake2b(image_id.encode(), digest_size=8).digest())
    return rows.take(pa.array([first[image_id] for image_id in drawn], pa.int64()))


def farthest_rows(rows: pa.Table, n: int) -> pa.Table:
    """The `n` different images of `rows` with the highest loss, highest first."""
    losses = rows[loss_column(rows.schema)].to_numpy()
    return first_images(rows, map(int, np.argsort(-losses, kind="stable")), n)


def unexplained_rows(clusters: pa.Table) -> tuple[float, pa.Table]:
    """The loss from which on an image is an outlier among all images, and the rows above it, worst first."""
    losses = clusters[loss_column(clusters.schema)].to_numpy()
    low, high = np.quantile(losses, [0.25, 0.75]) if len(losses) else (0.0, 0.0)
    fence = float(high + FENCE * (high - low))
    worst = np.argsort(-losses, kind="stable")
    return fence, clusters.take(pa.array(worst[losses[worst] > fence]))
