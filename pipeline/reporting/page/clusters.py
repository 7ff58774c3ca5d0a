"""The clusters of a page, ready for the template: pictures as data, numbers as text."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from pipeline.reporting.findings import Findings
from pipeline.reporting.page.charts import bars, number
from pipeline.reporting.page.crawled import plain_text, web_link
from pipeline.reporting.page.summaries import Axes, axes_of, day, losses, percentages, timeline, top_hashtags
from pipeline.reporting.pictures.mosaic import CRISP_BELOW_PX, Tile
from pipeline.reporting.pictures.pixels import Pixels, to_pictures
from pipeline.reporting.pictures.thumbnails import ThumbnailForm, thumbnail
from pipeline.reporting.survey.examples import MOST_NAMED
from pipeline.reporting.survey.quality import Quality
from pipeline.reporting.survey.sums import ClusterSums
from pipeline.reporting.survey.survey import ImageKey, Thumbnails, image_keys
from pipeline.reporting.tables.manifest import LOSS_NAMES, by_cluster, loss_column

HASHTAGS = 12
SHARED_BY = 5
"""Images that a mean, a timeline or a hashtag must come from where no examples are shown: of one, it would be it."""
WHITE_DEVIATION = 0.25
"""Root mean square, of 1, that is drawn as white; the same for all clusters, so that they can be compared."""
PROTOTYPE_SIZE = 2
"""Thumbnails that a prototype counts for."""


@dataclass(frozen=True)
class ExampleView:
    """One image of a cluster."""

    photo: str
    """A ``data:`` address, as are the next two."""
    prototype: str
    aligned: str
    caption: str
    link: str | None
    day: str
    loss: str


@dataclass(frozen=True)
class ClusterView:
    """One cluster as the template draws it."""

    tile: Tile
    share: str
    quality: Quality
    crisp: bool
    """Whether its pictures are so small that they are enlarged with hard edges."""
    prototype: str
    mean: str | None
    deviation: str | None
    groups: Mapping[str, Sequence[ExampleView]]
    """Examples by the name of their group."""
    mean_loss: str | None
    losses: Markup
    timeline: Markup
    dated: int
    """Images whose time is known."""
    hashtags: Sequence[tuple[str, int]]
    neighbours: Sequence[tuple[int, int]]
    """The most frequent runners-up among its images: cluster and number of images."""


def cluster_views(findings: Findings) -> list[ClusterView]:
    """One view per tile of `findings`, in the tiles' order; all on the same axes."""
    clusters, tiles, examples, form = findings.clusters, findings.tiles, findings.examples, findings.form
    axes = axes_of(clusters)
    shares = percentages([tile.size for tile in tiles])
    private, detailed = not examples, len(tiles) <= MOST_NAMED
    apart = by_cluster(clusters, len(tiles))
    views = []
    for tile, share in zip(tiles, shares, strict=True):
        members, own = apart[tile.cluster], findings.sums[tile.cluster]
        groups = {}
        if chosen := examples.get(tile.cluster):
            named = {"nearest": chosen.nearest, "random": chosen.random, "farthest": chosen.farthest}
            groups = {name: example_views(rows, findings.thumbnails) for name, rows in named.items() if rows.num_rows}
        shown = tile.size >= (SHARED_BY if private else 1)
        large = ThumbnailForm(tile.picture.shape[0], PROTOTYPE_SIZE * form.limit_bytes)
        views.append(
            ClusterView(
                tile=tile,
                share=share,
                quality=findings.qualities[tile.cluster],
                crisp=min(tile.picture.shape[:2]) < CRISP_BELOW_PX,
                prototype=data_uri(thumbnail(tile.picture, large)),
                mean=data_uri(thumbnail(to_pictures(own.mean_CHW[None])[0], form)) if shown else None,
                deviation=data_uri(thumbnail(deviation_picture(own), form)) if shown else None,
                groups=groups,
                mean_loss=_mean_loss(members),
                losses=_losses(members, axes, tile.cluster, detailed),
                timeline=_timeline(members, axes, tile.cluster, detailed) if shown else Markup(""),
                dated=members.num_rows - members["taken_at"].null_count,
                hashtags=_hashtags(members, SHARED_BY if private else 1),
                neighbours=_neighbours(members, tile.cluster),
            )
        )
    return views


def example_views(rows: pa.Table, thumbnails: Mapping[ImageKey, Thumbnails]) -> list[ExampleView]:
    """One view per row of the clusters table."""
    loss = loss_column(rows.schema)
    views = []
    for key, row in zip(image_keys(rows), rows.to_pylist(), strict=True):
        three = thumbnails[key]
        views.append(
            ExampleView(
                photo=data_uri(three.photo),
                prototype=data_uri(three.prototype),
                aligned=data_uri(three.aligned),
                caption=plain_text(row["caption"]),
                link=web_link(row["source_url"], row["source_uri"]),
                day=row["taken_at"].date().isoformat() if row["taken_at"] else "",
                loss=number(round(row[loss], 4)),
            )
        )
    return views


def data_uri(webp: bytes) -> str:
    """`webp` as an address that is the picture itself."""
    return "data:image/webp;base64," + base64.b64encode(webp).decode()


def deviation_picture(sums: ClusterSums) -> Pixels:
    """Where photos differ from their prototype: uint8 (H, W, 1), black for nowhere, white for 0.25 and more."""
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


def _hashtags(members: pa.Table, fewest: int) -> list[tuple[str, int]]:
    return [(plain_text(tag, 40), count) for tag, count in top_hashtags(members, HASHTAGS, fewest)]


def _neighbours(members: pa.Table, cluster: int) -> list[tuple[int, int]]:
    counts = members["runner_up"].value_counts().to_pylist()
    pairs = [(row["values"], row["counts"]) for row in counts if row["values"] not in (None, cluster)]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:3]
