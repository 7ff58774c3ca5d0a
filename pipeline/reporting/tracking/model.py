"""The model of the kept trial as an MLflow model, which can be loaded and used wherever MLflow is installed.

It contains the checkpoint, a copy of the code that reads it, and the versions of the packages that the code imports.
Nothing is pickled, and this project need not be installed where the model is loaded.
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
from pipeline.reporting.tracking.recording import Recording
from pipeline.storage import scratch_folder

MODEL = "model"
"""Name of the model within its run: ``runs:/RUN/model``."""
LOADER = "pipeline.reporting.tracking.load_model"
"""Module that MLflow imports to load the model."""
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml", "tenacity", "torch", "tqdm")
"""Packages that the loader imports, directly or through this package, and that MLflow needs to call it."""
_NEVER_IMPORTED = ("ingest", "orchestration", "page", "__pycache__", "*.md")
"""Folders and files of this package that the loader does not need."""
_TYPES = {"int32": "integer", "float": "float"}
"""MLflow's names of Arrow types."""


def log_model(recording: Recording) -> Any:
    """Log the model of the kept trial; return MLflow's ``LoggedModel``."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    client, parent, run = recording.client, recording.parent, recording.run
    logged = client.create_logged_model(
        recording.experiment, MODEL, source_run_id=parent, tags=recording.owner, model_type="clustering"
    )
    metadata = Model(
        artifact_path=logged.artifact_location,
        run_id=parent,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
        signature=_signature(run.config.clustering, run.crawls[0]),
    )
    with scratch_folder() as folder:
        data = folder / PurePosixPath(run.checkpoint_key).name
        write_model(recording.storage, run.checkpoint_key, data)
        _save(folder, data, metadata)
        client.log_model_artifacts(logged.model_id, str(folder / MODEL))
    client.log_outputs(parent, [LoggedModelOutput(logged.model_id, step=0)])
    return client.finalize_logged_model(logged.model_id, "READY")


def images_schema(crawl: Crawl) -> Any:
    """Return MLflow's schema of images like those of `crawl`: one tensor, uint8 (N, H, W, C)."""
    from mlflow.types import Schema, TensorSpec

    shape = (-1, crawl.image_size, crawl.image_size, CHANNELS[crawl.color_mode])
    return Schema([TensorSpec(np.dtype(np.uint8), shape)])


def _signature(config: ClusteringConfig, crawl: Crawl) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    schema = assignment_schema(clusters_schema(config))
    columns = [ColSpec(_TYPES[str(field.type)], field.name) for field in schema]
    return ModelSignature(inputs=images_schema(crawl), outputs=Schema(columns))


def _save(folder: Path, data: Path, metadata: Any) -> None:
    """Write the model to ``folder/model``."""
    from mlflow.pyfunc import save_model

    code = folder / "pipeline"
    shutil.copytree(Path(pipeline.__file__).parent, code, ignore=shutil.ignore_patterns(*_NEVER_IMPORTED))
    save_model(
        path=folder / MODEL,
        loader_module=LOADER,
        data_path=str(data),
        code_paths=[str(code)],
        # Without this list MLflow would load the model in another process to infer it, which is slow.
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
        # The signature is part of the metadata; MLflow would infer it from an example, which would be a photo.
        mlflow_model=metadata,
    )
