"""Trials on disk: everything that training needs to go on, and the model that reporting needs.

A checkpoint holds tensors and plain values only; loading one runs no code that it contains.
"""

from __future__ import annotations

import functools
import io
import pickle
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from pipeline.clustering.model.build import build_method
from pipeline.clustering.model.dti import DTI
from pipeline.clustering.patience import on_console, read_patiently, write_patiently
from pipeline.config import ClusteringConfig
from pipeline.errors import ClusteringError
from pipeline.storage import Storage

FORMAT = 1


class CheckpointWriter:
    """Publishes the checkpoints of a trial, each whole, while training goes on.

    Args:
        storage, key: where to.
        note: is told of storage that fails, and that it works again.
    """

    def __init__(self, storage: Storage, key: str, note: Callable[[str], None]) -> None:
        self._storage, self._key, self._note = storage, key, note
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def write(self, state: dict[str, Any], before: Mapping[str, dict[str, Any]] | None = None) -> bool:
        """Begin to publish `state` (tensors and plain values), which may change afterwards.

        False where an earlier one is not published yet: then this one is left out. Raises what became of it, once
        patience is at its end.

        Args:
            before: states that are published first, by their keys.
        """
        if self._pending is not None:
            if not self._pending.done():
                return False
            self._pending.result()
        # Copied to a file at once: the next step changes the tensors.
        folder = tempfile.TemporaryDirectory()
        paths: dict[str, Path] = {}
        for index, (key, copied) in enumerate({**(before or {}), self._key: state}.items()):
            paths[key] = Path(folder.name) / f"{index}.pt"
            torch.save({"format": FORMAT, **copied}, paths[key])
        self._pending = self._thread.submit(self._publish, folder, paths)
        return True

    def finish(self, state: dict[str, Any]) -> None:
        """Publish `state` as the last checkpoint; return when it is there."""
        self.close()
        self.write(state)
        self.close()

    def close(self) -> None:
        """Wait for what is being published; raises what became of it."""
        if self._pending is not None:
            self._pending.result()

    def _publish(self, folder: tempfile.TemporaryDirectory[str], paths: Mapping[str, Path]) -> None:
        with folder:
            for key, path in paths.items():
                publish = functools.partial(self._storage.publish, path, key)
                write_patiently(publish, self._storage.uri(key), self._note)


def load_checkpoint(storage: Storage, key: str, note: Callable[[str], None] = on_console) -> dict[str, Any]:
    """What a `CheckpointWriter` wrote, once storage answers. Raises ClusteringError for anything else.

    Args:
        storage, key: where it is.
        note: as that of `read_patiently`.
    """
    data = read_patiently(lambda: storage.read_bytes(key), storage.uri(key), note)
    broken = ClusteringError(f"{storage.uri(key)}: not a checkpoint; delete it to start this trial again")
    if not _is_whole(data):
        raise broken
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise broken from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ClusteringError(f"{storage.uri(key)}: expected a checkpoint of format {FORMAT}; delete it to start again")
    return state


def _is_whole(data: bytes) -> bool:
    """Whether `data` is an archive as torch writes it, with all its members as they were; torch does not look."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.testzip() is None and any(name.endswith("/version") for name in archive.namelist())
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, NotImplementedError):
        return False


def model_state(method: DTI, config: ClusteringConfig) -> dict[str, Any]:
    """The part of a checkpoint from which `load_method` rebuilds the model."""
    return {
        "clustering": config.model_dump(mode="json"),
        "k": method.k,
        "image_shape": list(method.image_shape),
        "active_modules": method.active_modules,
        "model": method.state_dict(),
    }


def write_model(storage: Storage, key: str, path: Path) -> None:
    """Write the model of the checkpoint `key`, and nothing of its training, to the local file `path`.

    `load_method` reads it as it reads a checkpoint.
    """
    state = load_checkpoint(storage, key)
    names = ("format", "clustering", "k", "image_shape", "active_modules", "model")
    torch.save({name: state[name] for name in names}, path)


def delete_snapshots(storage: Storage, key: str) -> None:
    """Publish the checkpoint `key` again without snapshots: the first ones are photos, from which training began.

    Nobody may train the trial meanwhile.
    """
    state = load_checkpoint(storage, key)
    if state.pop("snapshots", None):
        buffer = io.BytesIO()
        torch.save({**state, "snapshots": []}, buffer)
        storage.write_bytes(key, buffer.getvalue())


def load_method(storage: Storage, key: str, device: str | torch.device = "cpu") -> DTI:
    """The trained model of the checkpoint `key`, ready to assign images on `device`."""
    return method_of(load_checkpoint(storage, key), device)


def method_of(state: dict[str, Any], device: str | torch.device = "cpu") -> DTI:
    """The trained model of the checkpoint `state`, ready to assign images on `device`."""
    config = ClusteringConfig.model_validate(state["clustering"])
    initial = torch.zeros(state["k"], *state["image_shape"])
    method = build_method(config, initial, seed=0, device_type=torch.device(device).type)
    method.load_state_dict(state["model"])
    method.activate(state["active_modules"])
    return method.to(device).eval()
