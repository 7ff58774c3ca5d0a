"""Trials on disk: everything that training needs to go on, and the model that reporting needs.

A checkpoint holds tensors and plain values only; loading one runs no code that it contains.
"""

from __future__ import annotations

import io
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch

from pipeline.clustering.build import build_method
from pipeline.clustering.dti import DTI
from pipeline.config import ClusteringConfig
from pipeline.errors import ClusteringError
from pipeline.storage import Storage

FORMAT = 1


def save_checkpoint(storage: Storage, key: str, state: dict[str, Any]) -> None:
    """Publish `state` (tensors and plain values) as `key`, whole."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        torch.save({"format": FORMAT, **state}, path)
        storage.publish(path, key)


def load_checkpoint(storage: Storage, key: str) -> dict[str, Any]:
    """What `save_checkpoint` wrote. Raises ClusteringError for anything else."""
    try:
        state = torch.load(io.BytesIO(storage.read_bytes(key)), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise ClusteringError(f"{storage.uri(key)}: not a checkpoint; delete it to start this trial again") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ClusteringError(f"{storage.uri(key)}: expected a checkpoint of format {FORMAT}; delete it to start again")
    return state


def model_state(method: DTI, config: ClusteringConfig) -> dict[str, Any]:
    """The part of a checkpoint from which `load_method` rebuilds the model."""
    return {
        "clustering": config.model_dump(mode="json"),
        "k": method.k,
        "image_shape": list(method.image_shape),
        "active_modules": method.active_modules,
        "model": method.state_dict(),
    }


def load_method(storage: Storage, key: str, device: str = "cpu") -> DTI:
    """The trained model of the checkpoint `key`, ready to assign images on `device`."""
    state = load_checkpoint(storage, key)
    config = ClusteringConfig.model_validate(state["clustering"])
    initial = torch.zeros(state["k"], *state["image_shape"])
    method = build_method(config, initial, seed=0, device_type=torch.device(device).type)
    method.load_state_dict(state["model"])
    method.activate(state["active_modules"])
    return method.to(device).eval()
