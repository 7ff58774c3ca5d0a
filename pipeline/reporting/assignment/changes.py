"""What changed in a new crawl: which prototypes it shows more often than the images of the run, which less often, and
how much of it no prototype explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.console import counted
from pipeline.reporting.pictures.mosaic import Tile
from pipeline.reporting.pictures.pixels import read_png
from pipeline.reporting.tables.manifest import loss_column

EXPLAINED = 0.99
"""Part of the run's own images whose loss is no surprise; what lies above counts as unexplained."""
MOST_NAMED = 5
"""Clusters that are named as risen, and as fallen."""


@dataclass(frozen=True)
class Changes:
    """A crawl beside the images that its prototypes were learned from, which are called the run's own."""

    table: pa.Table
    """One row per cluster, in the model's order; see `changes_schema`."""
    mean_loss: float
    run_mean_loss: float
    fence: float
    """Loss that `EXPLAINED` of the run's own images do not exceed."""
    unexplained: int
    """Images of the crawl above it."""


def changes_schema(loss: str) -> pa.Schema:
    """Schema of ``changes.csv`` where the loss column of the clusters is called `loss`."""
    return pa.schema(
        {
            "cluster": pa.int32(),
            "size": pa.int64(),
            "share": pa.float64(),
            "run_size": pa.int64(),
            "run_share": pa.float64(),
            "share_change": pa.float64(),
            f"mean_{loss}": pa.float64(),
            f"run_mean_{loss}": pa.float64(),
        }
    )


def changes_of(clusters: pa.Table, prototypes: pa.Table, own_losses: np.ndarray[Any, Any]) -> Changes:
    """`clusters` of a crawl beside the `prototypes` that the run reported.

    Args:
        clusters: at least one image, as `manifest.clusters_table` made it.
        prototypes: as `manifest.prototypes_table` made it, of K rows.
        own_losses: of all images of the run, at least one.
    """
    loss = loss_column(clusters.schema)
    k, losses = prototypes.num_rows, clusters[loss].to_numpy()
    sizes = np.bincount(clusters["cluster"].to_numpy(), minlength=k)
    sums = np.bincount(clusters["cluster"].to_numpy(), losses.astype(np.float64), minlength=k)
    shares, run_shares = sizes / len(losses), prototypes["share"].to_numpy()
    columns = [
        prototypes["cluster"],
        sizes,
        shares,
        prototypes["size"],
        run_shares,
        shares - run_shares,
        pa.array(sums / np.maximum(sizes, 1), mask=sizes == 0),
        prototypes[f"mean_{loss}"],
    ]
    fence = float(np.quantile(own_losses, EXPLAINED))
    return Changes(
        table=pa.table(columns, schema=changes_schema(loss)),
        mean_loss=float(losses.mean(dtype=np.float64)),
        run_mean_loss=float(own_losses.mean(dtype=np.float64)),
        fence=fence,
        unexplained=int((losses > fence).sum()),
    )


def change_tiles(changes: Changes, prototypes: pa.Table) -> list[Tile]:
    """The prototypes with both shares, for a picture: what rose most first, what fell most last."""
    rows = zip(changes.table.to_pylist(), prototypes["pixels"].to_pylist(), strict=True)
    return [
        Tile(row["cluster"], row["size"], row["share"], read_png(pixels), earlier_share=row["run_share"])
        for row, pixels in sorted(rows, key=lambda pair: (-pair[0]["share_change"], pair[0]["cluster"]))
    ]


def largest_changes(changes: Changes) -> dict[str, list[dict[str, Any]]]:
    """The clusters that rose and that fell most, at most `MOST_NAMED` each: cluster, run_share and share."""
    names = ("cluster", "run_share", "share")
    ordered = sorted(changes.table.to_pylist(), key=lambda row: (-abs(row["share_change"]), row["cluster"]))
    signs = {"rise": 1, "fall": -1}
    moved = {name: [row for row in ordered if sign * row["share_change"] > 0] for name, sign in signs.items()}
    return {name: [{key: row[key] for key in names} for row in rows[:MOST_NAMED]] for name, rows in moved.items()}


def in_words(document: Mapping[str, Any]) -> list[str]:
    """What the ``assignment.json`` `document` says of changes, as lines for the console."""
    images, unexplained = document["counts"]["images"], document["counts"]["unexplained"]
    named = {"rise": "more often", "fall": "less often"}
    lines = [f"{words}: {_listed(document['changes'][name])}" for name, words in named.items()]
    state = "is" if unexplained == 1 else "are"
    worse = f"{unexplained:,} of {counted(images, 'image')} ({unexplained / images:.1%}) {state} explained worse than"
    return [
        *lines,
        f"{worse} {EXPLAINED:.0%} of the run's own; of the same views it would be about {1 - EXPLAINED:.0%}",
    ]


def _listed(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"#{row['cluster']} {row['run_share']:.1%} to {row['share']:.1%}" for row in rows) or "none"
