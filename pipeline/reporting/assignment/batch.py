"""Pictures → their prototypes, as columns of ``clusters.parquet``. It needs the model alone: no Ray, no workspace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from torch import Tensor

from pipeline.clustering.model.method import ClusteringMethod
from pipeline.reporting.pictures.pixels import Pixels, to_images
from pipeline.reporting.tables.manifest import loss_column, transform_columns

BATCH_SIZE = 64
"""Images that are assigned at once; bounds memory, since every image meets every prototype."""


def assignment_schema(schema: pa.Schema) -> pa.Schema:
    """The fields of `schema`, as `manifest.clusters_schema` made it, that say how an image is assigned."""
    names = ["cluster", loss_column(schema), "posterior", "runner_up", "margin"]
    return pa.schema([schema.field(name) for name in names], schema.metadata)


def assign_pictures(method: ClusteringMethod, pictures: Sequence[Pixels], schema: pa.Schema) -> pa.Table:
    """The columns of `schema` that come from the model, one row per picture, in order.

    Args:
        method: ready to assign images.
        pictures: at least one and about `BATCH_SIZE`, of the size the model was trained on, each uint8 (H, W, C).
        schema: as `manifest.clusters_schema` made it.
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
        # A module that the curriculum never switched on has no parameters.
        known = assignment.parameters.get(module)
        columns[name] = pa.nulls(len(pictures), pa.list_(pa.float32())) if known is None else _lists(known)
    return pa.table(columns).cast(pa.schema([schema.field(name) for name in columns]))


def _column(values_B: Tensor) -> pa.Array:
    return pa.array(values_B.detach().cpu().numpy())


def _lists(values_Bp: Tensor) -> pa.Array:
    n, p = values_Bp.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * p)
    return pa.ListArray.from_arrays(offsets, _column(values_Bp.float().flatten()))
