"""Checkpoints are written in the background of training, and survive temporary failures of the storage."""

from __future__ import annotations

import io
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.clustering import storage_retries
from pipeline.clustering.checkpoint import (
    CheckpointWriter,
    delete_snapshots,
    load_checkpoint,
    load_method,
    model_state,
    write_model,
)
from pipeline.clustering.model.build import build_method
from pipeline.config import ClusteringConfig
from pipeline.errors import ClusteringError, StorageError, UnavailableError
from pipeline.storage import LocalStorage


class Failing(LocalStorage):
    """Storage that refuses the next `failures` reads or writes, and waits for the event `open` before each write."""

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

    def read_bytes(self, key: str) -> bytes:
        if self.failures:
            self.failures -= 1
            raise UnavailableError(f"cannot read {key}: not now")
        return super().read_bytes(key)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_retries, "LONGEST_WAIT_S", 0.01)


def state(value: float) -> dict[str, Any]:
    return {"model": {"prototypes": torch.full((2,), value)}, "iteration": int(value)}


def test_a_checkpoint_holds_the_state_at_the_time_of_the_call(tmp_path: Path) -> None:
    storage = Failing(tmp_path)
    storage.open.clear()
    writer = CheckpointWriter(storage, "c", print)
    given = state(1)
    assert writer.write(given)
    given["model"]["prototypes"].add_(1)  # the next step
    assert not writer.write(given), "the first checkpoint is still being written"
    storage.open.set()
    writer.close()
    assert load_checkpoint(storage, "c")["model"]["prototypes"].tolist() == [1, 1]
    writer.finish(given)
    assert load_checkpoint(storage, "c")["model"]["prototypes"].tolist() == [2, 2]


def test_a_refused_write_is_retried_and_logged_once(tmp_path: Path) -> None:
    lines: list[str] = []
    storage = Failing(tmp_path, failures=3)
    CheckpointWriter(storage, "c", lines.append).finish(state(1))
    assert load_checkpoint(storage, "c")["iteration"] == 1
    assert [line.split(" is ")[1].split(":")[0] for line in lines] == ["not written", "written, at attempt 4"]


def test_retries_of_writes_are_limited_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_retries, "PATIENCE_S", 0.05)
    writer = CheckpointWriter(Failing(tmp_path, failures=1000), "c", print)
    assert writer.write(state(1))
    with pytest.raises(StorageError, match="not now"):
        writer.close()
    assert not list(tmp_path.iterdir())


def test_a_read_is_retried_while_storage_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = Failing(tmp_path)
    CheckpointWriter(storage, "c", print).finish(state(1))
    storage.failures = 3
    assert load_checkpoint(storage, "c")["iteration"] == 1
    out = capsys.readouterr().out
    assert "c is not read: cannot read c: not now; trying again for 10 minutes" in out
    assert "c is read, at attempt 4" in out


def test_the_read_of_a_missing_checkpoint_is_not_retried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StorageError, match="No such file") as raised:
        load_checkpoint(Failing(tmp_path), "c")
    assert not isinstance(raised.value, UnavailableError)
    assert capsys.readouterr().out == ""


def damaged(how: str, intact: bytes) -> bytes:
    """Return the checkpoint `intact` with the damage `how`."""
    middle = len(intact) // 2
    if how == "another archive":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("caption.txt", "a photo")
        return buffer.getvalue()
    return {
        "empty": b"",
        "cut": intact[:middle],
        "another byte": intact[:middle] + bytes([intact[middle] ^ 1]) + intact[middle + 1 :],
        "text": b"<html>not here</html>" * 100,
    }[how]


@pytest.mark.parametrize("how", ["empty", "cut", "another byte", "text", "another archive"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, how: str) -> None:
    storage = LocalStorage(str(tmp_path))
    CheckpointWriter(storage, "c", print).finish({"model": torch.zeros(1000)})
    storage.write_bytes("c", damaged(how, storage.read_bytes("c")))
    with pytest.raises(ClusteringError, match="c: not a checkpoint; delete it"):
        load_checkpoint(storage, "c")


def test_a_lack_of_memory_is_not_reported_as_a_damaged_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    storage = LocalStorage(str(tmp_path))
    CheckpointWriter(storage, "c", print).finish(state(1))
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(RuntimeError, match="allocate memory"):
        load_checkpoint(storage, "c")


def test_a_stored_model_has_no_state_of_training(tmp_path: Path) -> None:
    storage, config = LocalStorage(str(tmp_path)), ClusteringConfig(transforms=["color"])
    method = build_method(config, torch.rand(3, 1, 8, 8), seed=0)
    state = {**model_state(method, config), "optimizer": None, "snapshots": [{"webp": torch.zeros(9)}]}
    CheckpointWriter(storage, "checkpoint.pt", print).finish(state)
    write_model(storage, "checkpoint.pt", tmp_path / "model.pt")
    assert set(load_checkpoint(storage, "model.pt")) == {"format", *model_state(method, config)}
    loaded = load_method(storage, "model.pt")
    assert torch.equal(loaded.prototypes, method.prototypes)
    delete_snapshots(storage, "checkpoint.pt")
    left = load_checkpoint(storage, "checkpoint.pt")
    assert (left["snapshots"], set(left)) == ([], {"format", *state})


def test_states_before_a_checkpoint_are_published_first(tmp_path: Path) -> None:
    order: list[str] = []

    class Recording(LocalStorage):
        def publish(self, path: Path, key: str) -> None:
            order.append(key)
            super().publish(path, key)

    storage = Recording(str(tmp_path))
    writer = CheckpointWriter(storage, "c", print)
    assert writer.write(state(2), {"best": state(1)})
    writer.close()
    assert order == ["best", "c"]
    assert [load_checkpoint(storage, key)["iteration"] for key in order] == [1, 2]
