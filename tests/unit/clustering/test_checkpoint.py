"""Checkpoints are written beside training, and survive storage that fails for a while."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.clustering import patience
from pipeline.clustering.checkpoint import CheckpointWriter, load_checkpoint
from pipeline.errors import StorageError
from pipeline.storage import LocalStorage


class Failing(LocalStorage):
    """Refuses as many writes as it is told to, and waits for `open` before each."""

    def __init__(self, root: Path, failures: int = 0) -> None:
        super().__init__(str(root))
        self.failures = failures
        self.open = threading.Event()
        self.open.set()

    def publish(self, path: Path, key: str) -> None:
        self.open.wait(10)
        if self.failures:
            self.failures -= 1
            raise StorageError(f"cannot write {key}: not now")
        super().publish(path, key)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 0.01)


def state(value: float) -> dict[str, Any]:
    return {"model": {"prototypes": torch.full((2,), value)}, "iteration": int(value)}


def test_what_is_written_is_what_it_was_when_it_was_given(tmp_path: Path) -> None:
    storage = Failing(tmp_path)
    storage.open.clear()
    writer = CheckpointWriter(storage, "c", print)
    given = state(1)
    assert writer.write(given)
    given["model"]["prototypes"].add_(1)  # the next step
    assert not writer.write(given), "the first is still being written"
    storage.open.set()
    writer.close()
    assert load_checkpoint(storage, "c")["model"]["prototypes"].tolist() == [1, 1]
    writer.finish(given)
    assert load_checkpoint(storage, "c")["model"]["prototypes"].tolist() == [2, 2]


def test_a_refused_write_is_tried_again_and_said_once(tmp_path: Path) -> None:
    notes: list[str] = []
    storage = Failing(tmp_path, failures=3)
    CheckpointWriter(storage, "c", notes.append).finish(state(1))
    assert load_checkpoint(storage, "c")["iteration"] == 1
    assert [note.split(" is ")[1].split(":")[0] for note in notes] == ["not written", "written, at attempt 4"]


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.05)
    writer = CheckpointWriter(Failing(tmp_path, failures=1000), "c", print)
    assert writer.write(state(1))
    with pytest.raises(StorageError, match="not now"):
        writer.close()
    assert not list(tmp_path.iterdir())
