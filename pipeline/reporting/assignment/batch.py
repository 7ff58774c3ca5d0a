"""Assign pictures to prototypes, as columns of ``clusters.parquet``; this needs only the model, no Ray or workspace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from torch import Tensor

from pipeline.clustering.model.method import ClusteringMethod
from pipeline.records import Pixels
from pipeline.reporting.pixels import to_images
from pipeline.reporting.tables.manifest import loss_column, transform_columns

BATCH_SIZE = 64
"""Number of images assigned at once. It bounds memory, since every image is compared with every prototype."""


def assignment_schema(schema: pa.Schema) -> pa.Schema:
    """Return the fields of `schema` (see `manifest.clusters_schema`) that describe how an image is assigned."""
    names = ["cluster", loss_column(schema), "posterior", "runner_up", "margin"]
    return pa.schema([schema.field(name) for name in names], schema.metadata)


def assign_pictures(method: ClusteringMethod, pictures: Sequence[Pixels], schema: pa.Schema) -> pa.Table:
    """Return the columns of `schema` that the model computes, with one row per picture, in order.

    Args:
        method: the trained model.
        pictures: at least one and about `BATCH_SIZE` pictures, uint8 (H, W, C), of the size used in training.
        schema: see `manifest.clusters_schema`.
    """
    assignment = method.assign(to_images(pictures))
    columns = {
        "cluster": _column(assignment.cluster_B),
        loss_column(schema): _column(assignment.loss_B),
        "posterior": _column(assignment.posterior_B),
        "runner_up": _column(assignment.runner_up_B),
        "margin": _column(assignment.margin_B),
    }
    for module, name in transform_columns(schema).items():
        # A module that the curriculum never activated has no parameters.
        beta = assignment.parameters.get(module)
        columns[name] = pa.nulls(len(pictures), pa.list_(pa.float32())) if beta is None else _lists(beta)
    return pa.table(columns).cast(pa.schema([schema.field(name) for name in columns]))


def _column(values_B: Tensor) -> pa.Array:
    return pa.array(values_B.detach().cpu().numpy())


def _lists(values_Bp: Tensor) -> pa.Array:
    n, p = values_Bp.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * p)
    return pa.ListArray.from_arrays(offsets, _column(values_Bp.float().flatten()))
