"""Summaries of the images of a cluster: losses, times and hashtags, with the same axes for all clusters."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.reporting.tables.manifest import loss_column

BINS = 40
"""Number of bins of a histogram."""
TAIL = 0.005
"""Part of the values at either end that fall into the outermost bin, since crawls contain dates such as 1970-01-01."""
Edges = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Axes:
    """Edges of the bins, which are the same for all clusters of a page; `BINS` + 1 values each."""

    losses: Edges
    times: Edges | None
    """Milliseconds since 1970; None if fewer than two distinct times are known."""


def axes_of(clusters: pa.Table) -> Axes:
    """Return the axes for the images of `clusters`; see `manifest.clusters_table`."""
    times = _milliseconds(clusters)
    values = clusters[loss_column(clusters.schema)].to_numpy()
    return Axes(_edges(values), _edges(times) if len(np.unique(times)) > 1 else None)


def losses(rows: pa.Table, axes: Axes) -> list[int]:
    """Return the number of images in each bin of the loss; they sum to the number of `rows`."""
    return _histogram(rows[loss_column(rows.schema)].to_numpy(), axes.losses)


def timeline(rows: pa.Table, axes: Axes) -> list[int]:
    """Return the number of images in each bin of the time of the post; images without a time are left out."""
    return [] if axes.times is None else _histogram(_milliseconds(rows), axes.times)


def top_hashtags(rows: pa.Table, n: int, min_images: int = 1) -> list[tuple[str, int]]:
    """Return the `n` most frequent hashtags that at least `min_images` images have, and their numbers of images."""
    images = pa.chunked_array([pc.list_parent_indices(chunk) for chunk in _columns(rows)], pa.int64())
    tags = pa.chunked_array([pc.list_flatten(chunk) for chunk in _columns(rows)], pa.string())
    # An image that has a hashtag twice counts once.
    pairs = pa.table({"image": images, "tag": pc.utf8_lower(tags)}).group_by(["image", "tag"]).aggregate([])
    counts = pairs["tag"].value_counts().to_pylist()
    frequent = [(row["values"], row["counts"]) for row in counts if row["values"] and row["counts"] >= min_images]
    return sorted(frequent, key=lambda pair: (-pair[1], pair[0]))[:n]


def day(milliseconds: float) -> str:
    """Return the date of a time in milliseconds since 1970, such as 2016-08-27."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)).date().isoformat()


def percentages(sizes: list[int]) -> list[str]:
    """Return each of `sizes` as a percentage of their sum, with one decimal, such that all add up to exactly 100.0.

    Tenths left over by rounding are distributed by the largest remainder method.
    """
    total = sum(sizes)
    if not total:
        return ["0.0 %"] * len(sizes)
    exact = [Fraction(1000 * size, total) for size in sizes]
    tenths = [int(value) for value in exact]
    order = sorted(range(len(sizes)), key=lambda index: (tenths[index] - exact[index], index))
    for index in order[: 1000 - sum(tenths)]:
        tenths[index] += 1
    return [f"{value // 10}.{value % 10} %" for value in tenths]


def _columns(rows: pa.Table) -> list[pa.Array]:
    """Return the hashtags as a single array, so that the indices of lists are those of the rows."""
    column = rows["hashtags"].combine_chunks()
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _milliseconds(rows: pa.Table) -> Edges:
    return rows["taken_at"].drop_null().cast(pa.int64()).to_numpy().astype(np.float64)


def _edges(values: np.ndarray[Any, Any]) -> Edges:
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, [TAIL, 1 - TAIL]) if len(finite) else (0.0, 1.0)
    return np.linspace(low, high if high > low else low + 1, BINS + 1)


def _histogram(values: np.ndarray[Any, Any], edges: Edges) -> list[int]:
    counts, _ = np.histogram(np.nan_to_num(values, nan=edges[-1]).clip(edges[0], edges[-1]), edges)
    return [int(count) for count in counts]
