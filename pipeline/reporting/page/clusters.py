"""The clusters of a page as the template needs them: pictures as data URIs, numbers as text."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from pipeline.records import Pixels
from pipeline.reporting.findings import Findings
from pipeline.reporting.page.charts import bars, number
from pipeline.reporting.page.sanitize import plain_text, web_link
from pipeline.reporting.page.summaries import Axes, axes_of, day, losses, percentages, timeline, top_hashtags
from pipeline.reporting.pictures.drawing import CRISP_BELOW_PX
from pipeline.reporting.pictures.mosaic import Tile
from pipeline.reporting.pictures.thumbnails import ThumbnailForm, thumbnail
from pipeline.reporting.pixels import to_pictures
from pipeline.reporting.survey.examples import MAX_CLUSTERS_WITH_BAR_NAMES
from pipeline.reporting.survey.quality import Quality
from pipeline.reporting.survey.sums import ClusterSums
from pipeline.reporting.survey.survey import ImageKey, Thumbnails, image_keys
from pipeline.reporting.tables.manifest import LOSS_NAMES, by_cluster, loss_column

HASHTAGS = 12
"""Maximum number of hashtags of a cluster."""
MIN_IMAGES_WITHOUT_EXAMPLES = 5
"""Minimum number of images behind a mean image, timeline or hashtag in a report without examples: the mean of one
photo would be the photo."""
WHITE_DEVIATION = 0.25
"""Root mean square deviation in [0, 1] that is drawn as white; equal for all clusters, so that they are comparable."""
PROTOTYPE_SIZE = 2
"""Size of a prototype's picture, in thumbnails."""


@dataclass(frozen=True)
class ExampleView:
    """One example image as the template draws it."""

    photo: str
    """The photo, as a ``data:`` URI."""
    prototype: str
    """The prototype aligned to the photo, as a ``data:`` URI."""
    aligned: str
    """The photo aligned back to the prototype, as a ``data:`` URI."""
    caption: str
    link: str | None
    """URL of the source, if it is safe to link."""
    day: str
    """Date of the post, such as 2016-08-27; empty if it is unknown."""
    loss: str


@dataclass(frozen=True)
class ClusterView:
    """One cluster as the template draws it."""

    tile: Tile
    share: str
    quality: Quality
    crisp: bool
    """Whether its pictures are so small that they are enlarged with hard pixel edges."""
    prototype: str
    """The prototype, as a ``data:`` URI."""
    mean: str | None
    """The unaligned mean of its photos, as a ``data:`` URI; None if it is not shown."""
    deviation: str | None
    """Where aligned photos differ from the prototype, as a ``data:`` URI; None if it is not shown."""
    groups: Mapping[str, Sequence[ExampleView]]
    """Examples by the name of their group: nearest, random or farthest."""
    mean_loss: str | None
    losses: Markup
    """Histogram of the losses."""
    timeline: Markup
    """Histogram of the times of the posts; empty if it is not shown."""
    dated: int
    """Number of images whose time is known."""
    hashtags: Sequence[tuple[str, int]]
    """The most frequent hashtags, each with its number of images."""
    neighbours: Sequence[tuple[int, int]]
    """The most frequent runners-up among its images, each as the cluster and the number of images."""


def cluster_views(findings: Findings) -> list[ClusterView]:
    """Return one view per tile of `findings`, in the same order; the charts of all clusters have the same axes."""
    clusters, tiles, examples, form = findings.clusters, findings.tiles, findings.examples, findings.form
    axes = axes_of(clusters)
    shares = percentages([tile.size for tile in tiles])
    private, named = not examples, len(tiles) <= MAX_CLUSTERS_WITH_BAR_NAMES
    members_by_cluster = by_cluster(clusters, len(tiles))
    views = []
    for tile, share in zip(tiles, shares, strict=True):
        members, sums = members_by_cluster[tile.cluster], findings.sums[tile.cluster]
        groups = {}
        if chosen := examples.get(tile.cluster):
            tables = {"nearest": chosen.nearest, "random": chosen.random, "farthest": chosen.farthest}
            groups = {name: example_views(rows, findings.thumbnails) for name, rows in tables.items() if rows.num_rows}
        min_images = MIN_IMAGES_WITHOUT_EXAMPLES if private else 1
        has_sums = tile.size >= min_images
        large = ThumbnailForm(tile.picture.shape[0], PROTOTYPE_SIZE * form.limit_bytes)
        views.append(
            ClusterView(
                tile=tile,
                share=share,
                quality=findings.qualities[tile.cluster],
                crisp=min(tile.picture.shape[:2]) < CRISP_BELOW_PX,
                prototype=data_uri(thumbnail(tile.picture, large)),
                mean=data_uri(thumbnail(to_pictures(sums.mean_CHW[None])[0], form)) if has_sums else None,
                deviation=data_uri(thumbnail(deviation_picture(sums), form)) if has_sums else None,
                groups=groups,
                mean_loss=_mean_loss(members),
                losses=_losses(members, axes, tile.cluster, named),
                timeline=_timeline(members, axes, tile.cluster, named) if has_sums else Markup(""),
                dated=members.num_rows - members["taken_at"].null_count,
                hashtags=_hashtags(members, min_images),
                neighbours=_neighbours(members, tile.cluster),
            )
        )
    return views


def example_views(rows: pa.Table, thumbnails: Mapping[ImageKey, Thumbnails]) -> list[ExampleView]:
    """Return one view per row of the clusters table."""
    loss = loss_column(rows.schema)
    views = []
    for key, row in zip(image_keys(rows), rows.to_pylist(), strict=True):
        pictures = thumbnails[key]
        views.append(
            ExampleView(
                photo=data_uri(pictures.photo),
                prototype=data_uri(pictures.prototype),
                aligned=data_uri(pictures.aligned),
                caption=plain_text(row["caption"]),
                link=web_link(row["source_url"], row["source_uri"]),
                day=row["taken_at"].date().isoformat() if row["taken_at"] else "",
                loss=number(round(row[loss], 4)),
            )
        )
    return views


def data_uri(webp: bytes) -> str:
    """Return the content of a WebP file as a ``data:`` URI."""
    return "data:image/webp;base64," + base64.b64encode(webp).decode()


def deviation_picture(sums: ClusterSums) -> Pixels:
    """Return the root mean square deviation of photos from the prototype, uint8 (H, W, 1): 0 black, 0.25 white."""
    return to_pictures((sums.deviation_HW / WHITE_DEVIATION)[None, None])[0]


def _mean_loss(members: pa.Table) -> str | None:
    losses = members[loss_column(members.schema)].to_numpy()
    return number(float(np.float32(losses.mean(dtype=np.float64)))) if len(losses) else None


def _losses(members: pa.Table, axes: Axes, cluster: int, named: bool) -> Markup:
    if not members.num_rows:
        return Markup("")
    edges = [number(float(f"{edge:.4g}")) for edge in axes.losses]
    names = [f"{low} to {high}" for low, high in pairwise(edges)]
    median = number(float(f"{np.median(members[loss_column(members.schema)].to_numpy()):.4g}"))
    name = LOSS_NAMES[loss_column(members.schema)].capitalize()
    description = (
        f"{name} of the images of cluster {cluster}: median {median}, on a scale from {edges[0]} to {edges[-1]}"
    )
    return bars(losses(members, axes), description, (edges[0], edges[-1]), names if named else ())


def _timeline(members: pa.Table, axes: Axes, cluster: int, named: bool) -> Markup:
    if axes.times is None or members["taken_at"].null_count == members.num_rows:
        return Markup("")
    days = [day(edge) for edge in axes.times]
    names = [f"{first} to {last}" for first, last in pairwise(days)]
    counts = timeline(members, axes)
    peak = names[int(np.argmax(counts))]
    description = f"When the images of cluster {cluster} were posted, from {days[0]} to {days[-1]}; most from {peak}"
    return bars(counts, description, (days[0], days[-1]), names if named else ())


def _hashtags(members: pa.Table, min_images: int) -> list[tuple[str, int]]:
    return [(plain_text(tag, 40), count) for tag, count in top_hashtags(members, HASHTAGS, min_images)]


def _neighbours(members: pa.Table, cluster: int) -> list[tuple[int, int]]:
    counts = members["runner_up"].value_counts().to_pylist()
    pairs = [(row["values"], row["counts"]) for row in counts if row["values"] not in (None, cluster)]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:3]
