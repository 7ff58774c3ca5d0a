"""Checkpoints of trials: the state from which training continues, and the model that reporting needs.

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
from pipeline.clustering.storage_retries import log_on_console, read_with_retries, write_with_retries
from pipeline.config import ClusteringConfig
from pipeline.errors import ClusteringError
from pipeline.storage import Storage

FORMAT = 2
"""Version of the format of checkpoints."""


class CheckpointWriter:
    """Publishes the checkpoints of a trial atomically, in the background of training.

    Args:
        storage: workspace.
        key: key of the checkpoint.
        log: called with a line when the storage fails, and with another one when it works again.
    """

    def __init__(self, storage: Storage, key: str, log: Callable[[str], None]) -> None:
        self._storage, self._key, self._log = storage, key, log
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def write(self, state: dict[str, Any], before: Mapping[str, dict[str, Any]] | None = None) -> bool:
        """Start to publish `state` (tensors and plain values), which the caller may change afterwards.

        Args:
            state: content of the checkpoint.
            before: states that are published before it, by their keys.

        Returns:
            Whether it was started: a checkpoint is skipped while an earlier one is still being published.

        Raises:
            StorageError: an earlier checkpoint could not be published, in spite of all retries.
        """
        if self._pending is not None:
            if not self._pending.done():
                return False
            self._pending.result()
        # Copy the states to files now, since the next step changes the tensors.
        folder = tempfile.TemporaryDirectory()
        paths: dict[str, Path] = {}
        for index, (key, content) in enumerate({**(before or {}), self._key: state}.items()):
            paths[key] = Path(folder.name) / f"{index}.pt"
            torch.save({"format": FORMAT, **content}, paths[key])
        self._pending = self._thread.submit(self._publish, folder, paths)
        return True

    def finish(self, state: dict[str, Any]) -> None:
        """Publish `state` as the last checkpoint, and return when it is in storage."""
        self.close()
        self.write(state)
        self.close()

    def close(self) -> None:
        """Wait until the current checkpoint is published. Raises StorageError if it could not be published."""
        if self._pending is not None:
            self._pending.result()

    def _publish(self, folder: tempfile.TemporaryDirectory[str], paths: Mapping[str, Path]) -> None:
        with folder:
            for key, path in paths.items():
                publish = functools.partial(self._storage.publish, path, key)
                write_with_retries(publish, self._storage.uri(key), self._log)


def load_checkpoint(storage: Storage, key: str, log: Callable[[str], None] = log_on_console) -> dict[str, Any]:
    """Read a checkpoint that a `CheckpointWriter` wrote; reading is repeated while the storage does not answer.

    Args:
        storage: workspace.
        key: key of the checkpoint.
        log: as in `read_with_retries`.

    Raises:
        ClusteringError: the content is damaged, or is not a checkpoint of this format.
        StorageError: the checkpoint does not exist, or cannot be read.
    """
    data = read_with_retries(lambda: storage.read_bytes(key), storage.uri(key), log)
    invalid = ClusteringError(f"{storage.uri(key)}: not a checkpoint; delete it to start this trial again")
    if not _is_intact(data):
        raise invalid
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise invalid from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ClusteringError(f"{storage.uri(key)}: expected a checkpoint of format {FORMAT}; delete it to start again")
    return state


def _is_intact(data: bytes) -> bool:
    """Whether `data` is an archive that torch wrote and whose checksums are correct; torch does not check them."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.testzip() is None and any(name.endswith("/version") for name in archive.namelist())
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, NotImplementedError):
        return False


def model_state(method: DTI, config: ClusteringConfig) -> dict[str, Any]:
    """Return the part of a checkpoint from which `load_method` rebuilds the model."""
    return {
        "clustering": config.model_dump(mode="json"),
        "k": method.k,
        "image_shape": list(method.image_shape),
        "predicted_modules": method.predicted_modules,
        "learns_variances": method.learns_variances,
        "model": method.state_dict(),
    }


def write_model(storage: Storage, key: str, path: Path) -> None:
    """Write the model of the checkpoint `key`, without the state of training, to the local file `path`.

    `load_method` reads this file as well.
    """
    state = load_checkpoint(storage, key)
    names = ("format", "clustering", "k", "image_shape", "predicted_modules", "learns_variances", "model")
    torch.save({name: state[name] for name in names}, path)


def delete_snapshots(storage: Storage, key: str) -> None:
    """Publish the checkpoint `key` again without its snapshots: the first ones show photos (initial prototypes).

    The trial must not be trained at the same time.
    """
    state = load_checkpoint(storage, key)
    if state.pop("snapshots", None):
        buffer = io.BytesIO()
        torch.save({**state, "snapshots": []}, buffer)
        storage.write_bytes(key, buffer.getvalue())


def load_method(storage: Storage, key: str, device: str | torch.device = "cpu") -> DTI:
    """Load the trained model of the checkpoint `key`, ready to assign images on `device`."""
    return method_of(load_checkpoint(storage, key), device)


def method_of(state: dict[str, Any], device: str | torch.device = "cpu") -> DTI:
    """Build the trained model of the loaded checkpoint `state`, ready to assign images on `device`."""
    config = ClusteringConfig.model_validate(state["clustering"])
    initial = torch.zeros(state["k"], *state["image_shape"])
    method = build_method(config, initial, seed=0, device_type=torch.device(device).type)
    method.load_state_dict(state["model"])
    method.activate(state["predicted_modules"], state["learns_variances"])
    return method.to(device).eval()
