"""The kept trial's model as an MLflow model, which anybody who has MLflow can load and ask.

It holds the checkpoint, a copy of the code that reads it, and the versions of the packages that the code imports:
nothing is pickled, and nothing of this project needs to be installed where it is loaded.
"""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

import pipeline
from pipeline.clustering.checkpoint import write_model
from pipeline.config import ClusteringConfig
from pipeline.records import CHANNELS, Crawl
from pipeline.reporting.assignment.batch import assignment_schema
from pipeline.reporting.tables.manifest import clusters_schema
from pipeline.storage import Storage, scratch_folder

MODEL = "model"
"""Name of the model within its run: ``runs:/RUN/model``."""
LOADER = "pipeline.reporting.tracking.load_model"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml", "tenacity", "torch", "tqdm")
"""What the loader imports, directly or through this package."""
_NEVER_IMPORTED = ("ingest", "orchestration", "page", "__pycache__")
"""Folders of this package that the loader does without."""
_TYPES = {"int32": "integer", "float": "float"}
"""MLflow's names of Arrow's types."""


def log_model(
    client: Any,
    experiment: str,
    run: str,
    storage: Storage,
    checkpoint: str,
    config: ClusteringConfig,
    crawl: Crawl,
    tags: dict[str, str],
) -> Any:
    """Log the model stored as `checkpoint`; return what MLflow knows of it.

    Args:
        client: of MLflow.
        experiment: MLflow's id of it.
        run: MLflow's id of the run that the model belongs to.
        storage: workspace with the checkpoint; the model in it is copied, as an artifact.
        checkpoint: its key.
        config: that it was trained with.
        crawl: any of those that it was trained on; says what its images look like.
        tags: of the model.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    logged = client.create_logged_model(experiment, MODEL, source_run_id=run, tags=tags, model_type="clustering")
    described = Model(
        artifact_path=logged.artifact_location,
        run_id=run,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
        signature=_signature(config, crawl),
    )
    with scratch_folder() as folder:
        data = folder / PurePosixPath(checkpoint).name
        write_model(storage, checkpoint, data)
        _save(folder, data, described)
        client.log_model_artifacts(logged.model_id, str(folder / MODEL))
    client.log_outputs(run, [LoggedModelOutput(logged.model_id, step=0)])
    return client.finalize_logged_model(logged.model_id, "READY")


def images_schema(crawl: Crawl) -> Any:
    """MLflow's schema of images as those of `crawl`: one tensor, uint8 (N, H, W, C)."""
    from mlflow.types import Schema, TensorSpec

    shape = (-1, crawl.image_size, crawl.image_size, CHANNELS[crawl.color_mode])
    return Schema([TensorSpec(np.dtype(np.uint8), shape)])


def _signature(config: ClusteringConfig, crawl: Crawl) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    answer = assignment_schema(clusters_schema(config))
    columns = [ColSpec(_TYPES[str(field.type)], field.name) for field in answer]
    return ModelSignature(inputs=images_schema(crawl), outputs=Schema(columns))


def _save(folder: Path, data: Path, described: Any) -> None:
    """Write the model to ``folder/model``."""
    from mlflow.pyfunc import save_model

    code = folder / "pipeline"
    shutil.copytree(Path(pipeline.__file__).parent, code, ignore=shutil.ignore_patterns(*_NEVER_IMPORTED))
    save_model(
        path=folder / MODEL,
        loader_module=LOADER,
        data_path=str(data),
        code_paths=[str(code)],
        # Given, not found out: MLflow would load the model in a process of its own, which takes long.
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
        # It has the signature, for which MLflow would like an example: that would be a photo.
        mlflow_model=described,
    )
