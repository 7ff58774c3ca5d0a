"""What ``mlflow.pyfunc.load_model`` imports to load a tracked model, from the copy of this package that lies beside it.

So it imports no more than assigning images takes, and changes nothing of the process that loads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.clustering.checkpoint import load_checkpoint, load_method
from pipeline.config import ClusteringConfig
from pipeline.reporting.assignment.batch import BATCH_SIZE, assign_pictures, assignment_schema
from pipeline.reporting.pictures.pixels import Pixels
from pipeline.reporting.tables.manifest import clusters_schema
from pipeline.storage import LocalStorage


class TrackedModel:
    """A trained model, on the CPU.

    Args:
        checkpoint: file of the kept trial.
    """

    def __init__(self, checkpoint: Path) -> None:
        storage = LocalStorage(str(checkpoint.parent))
        config = ClusteringConfig.model_validate(load_checkpoint(storage, checkpoint.name)["clustering"])
        self._schema = clusters_schema(config)
        self._method = load_method(storage, checkpoint.name)

    def predict(self, images: Pixels, params: dict[str, Any] | None = None) -> Any:
        """How each of `images`, uint8 (N, H, W, C) of the collection's size, is assigned; see `assignment_schema`.

        Args:
            images: upright squares, as the collection's shards hold them. MLflow has checked shape and type.
            params: none; MLflow passes them to every model.

        Returns:
            A pandas DataFrame, one row per image, in order.
        """
        wanted = assignment_schema(self._schema)
        parts = [wanted.empty_table()]
        for start in range(0, len(images), BATCH_SIZE):
            assigned = assign_pictures(self._method, list(images[start : start + BATCH_SIZE]), self._schema)
            parts.append(assigned.select(wanted.names).cast(wanted))
        return pa.concat_tables(parts).to_pandas()


def _load_pyfunc(path: str) -> TrackedModel:
    """MLflow's name for the function that makes a model of the file or folder that was saved with it."""
    return TrackedModel(Path(path))
