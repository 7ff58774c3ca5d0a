"""Comparison of a new crawl with a run: clusters that gained or lost share, and images that no prototype explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.console import counted
from pipeline.reporting.pictures.mosaic import Tile
from pipeline.reporting.pixels import read_png
from pipeline.reporting.tables.manifest import loss_column

EXPLAINED_QUANTILE = 0.99
"""Quantile of the losses of the run's images above which an image of the crawl counts as unexplained."""
MAX_LISTED = 5
"""Maximum number of clusters listed as risen, and as fallen."""


@dataclass(frozen=True)
class Changes:
    """Comparison of a crawl with the images of the run from which the prototypes were learned."""

    table: pa.Table
    """One row per cluster, in the model's order; see `changes_schema`."""
    mean_loss: float
    """Mean loss of the images of the crawl."""
    run_mean_loss: float
    """Mean loss of the images of the run."""
    unexplained_above: float
    """Loss that the fraction `EXPLAINED_QUANTILE` of the run's images does not exceed."""
    unexplained: int
    """Number of images of the crawl whose loss is above `unexplained_above`."""


def changes_schema(loss: str) -> pa.Schema:
    """Return the schema of ``changes.csv``; `loss` is the name of the loss column of the clusters."""
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


def changes_of(clusters: pa.Table, prototypes: pa.Table, run_losses: np.ndarray[Any, Any]) -> Changes:
    """Compare an assigned crawl with the run that its prototypes come from.

    Args:
        clusters: at least one image of the crawl; see `manifest.clusters_table`.
        prototypes: K prototypes of the run; see `manifest.prototypes_table`.
        run_losses: losses of all images of the run, at least one.
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
    threshold = float(np.quantile(run_losses, EXPLAINED_QUANTILE))
    return Changes(
        table=pa.table(columns, schema=changes_schema(loss)),
        mean_loss=float(losses.mean(dtype=np.float64)),
        run_mean_loss=float(run_losses.mean(dtype=np.float64)),
        unexplained_above=threshold,
        unexplained=int((losses > threshold).sum()),
    )


def change_tiles(changes: Changes, prototypes: pa.Table) -> list[Tile]:
    """Return one tile per prototype with both shares, sorted from the largest rise to the largest fall."""
    rows = zip(changes.table.to_pylist(), prototypes["pixels"].to_pylist(), strict=True)
    return [
        Tile(row["cluster"], row["size"], row["share"], read_png(pixels), earlier_share=row["run_share"])
        for row, pixels in sorted(rows, key=lambda pair: (-pair[0]["share_change"], pair[0]["cluster"]))
    ]


def largest_changes(changes: Changes) -> dict[str, list[dict[str, Any]]]:
    """Return the clusters whose shares rose and fell most, at most `MAX_LISTED` each, with both shares."""
    names = ("cluster", "run_share", "share")
    ordered = sorted(changes.table.to_pylist(), key=lambda row: (-abs(row["share_change"]), row["cluster"]))
    signs = {"rise": 1, "fall": -1}
    moved = {name: [row for row in ordered if sign * row["share_change"] > 0] for name, sign in signs.items()}
    return {name: [{key: row[key] for key in names} for row in rows[:MAX_LISTED]] for name, rows in moved.items()}


def describe_changes(document: Mapping[str, Any]) -> list[str]:
    """Return the changes in `document`, the content of ``assignment.json``, as lines for the console."""
    images, unexplained = document["counts"]["images"], document["counts"]["unexplained"]
    labels = {"rise": "more often", "fall": "less often"}
    lines = [f"{label}: {_listed(document['changes'][name])}" for name, label in labels.items()]
    verb = "has" if unexplained == 1 else "have"
    return [
        *lines,
        f"{unexplained:,} of {counted(images, 'image')} ({unexplained / images:.1%}) {verb} a higher loss than "
        f"{EXPLAINED_QUANTILE:.0%} of the run's images; about {1 - EXPLAINED_QUANTILE:.0%} would be expected if the "
        "crawl showed the same views",
    ]


def _listed(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"#{row['cluster']} {row['run_share']:.1%} to {row['share']:.1%}" for row in rows) or "none"
