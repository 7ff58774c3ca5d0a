"""Loader of tracked models, which ``mlflow.pyfunc.load_model`` imports from the copy of this package in the model.

It therefore imports only what is needed to assign images, and has no side effects on the process that loads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.clustering.checkpoint import load_checkpoint, load_method
from pipeline.config import ClusteringConfig
from pipeline.records import Pixels
from pipeline.reporting.assignment.batch import BATCH_SIZE, assign_pictures, assignment_schema
from pipeline.reporting.tables.manifest import clusters_schema
from pipeline.storage import LocalStorage


class TrackedModel:
    """A trained model, on the CPU.

    Args:
        checkpoint: checkpoint file of the kept trial.
    """

    def __init__(self, checkpoint: Path) -> None:
        storage = LocalStorage(str(checkpoint.parent))
        config = ClusteringConfig.model_validate(load_checkpoint(storage, checkpoint.name)["clustering"])
        self._schema = clusters_schema(config)
        self._method = load_method(storage, checkpoint.name)

    def predict(self, images: Pixels, params: dict[str, Any] | None = None) -> Any:
        """Assign images to prototypes.

        Args:
            images: upright square images, uint8 (N, H, W, C), of the collection's size. MLflow checks shape and type.
            params: not used; MLflow passes it to every model.

        Returns:
            A pandas DataFrame with one row per image, in order, and the columns of `assignment_schema`.
        """
        columns = assignment_schema(self._schema)
        parts = [columns.empty_table()]
        for start in range(0, len(images), BATCH_SIZE):
            assigned = assign_pictures(self._method, list(images[start : start + BATCH_SIZE]), self._schema)
            parts.append(assigned.select(columns.names).cast(columns))
        return pa.concat_tables(parts).to_pandas()


def _load_pyfunc(path: str) -> TrackedModel:
    """Load the model from the checkpoint file `path`; MLflow requires a function of this name."""
    return TrackedModel(Path(path))
