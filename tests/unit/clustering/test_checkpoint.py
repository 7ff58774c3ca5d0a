"""Checkpoints are written beside training, and survive storage that fails for a while."""

from __future__ import annotations

import io
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.clustering import patience
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
    """Refuses as many reads or writes as it is told to, and waits for `open` before each write."""

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


def test_a_read_is_tried_again_where_storage_does_not_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Failing(tmp_path)
    CheckpointWriter(storage, "c", print).finish(state(1))
    storage.failures = 3
    assert load_checkpoint(storage, "c")["iteration"] == 1
    said = capsys.readouterr().out
    assert "c is not read: cannot read c: not now; trying again for 10 minutes" in said
    assert "c is read, at attempt 4" in said


def test_what_is_missing_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StorageError, match="No such file") as raised:
        load_checkpoint(Failing(tmp_path), "c")
    assert not isinstance(raised.value, UnavailableError)
    assert capsys.readouterr().out == ""


def damaged(how: str, whole: bytes) -> bytes:
    """A checkpoint that something happened to."""
    middle = len(whole) // 2
    if how == "another archive":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("caption.txt", "a photo")
        return buffer.getvalue()
    return {
        "empty": b"",
        "cut": whole[:middle],
        "another byte": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "text": b"<html>not here</html>" * 100,
    }[how]


@pytest.mark.parametrize("how", ["empty", "cut", "another byte", "text", "another archive"])
def test_what_is_damaged_is_no_checkpoint(tmp_path: Path, how: str) -> None:
    storage = LocalStorage(str(tmp_path))
    CheckpointWriter(storage, "c", print).finish({"model": torch.zeros(1000)})
    storage.write_bytes("c", damaged(how, storage.read_bytes("c")))
    with pytest.raises(ClusteringError, match="c: not a checkpoint; delete it"):
        load_checkpoint(storage, "c")


def test_a_lack_of_memory_does_not_make_a_checkpoint_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    storage = LocalStorage(str(tmp_path))
    CheckpointWriter(storage, "c", print).finish(state(1))
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(RuntimeError, match="allocate memory"):
        load_checkpoint(storage, "c")


def test_a_model_by_itself_has_nothing_of_its_training(tmp_path: Path) -> None:
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


def test_what_comes_before_a_checkpoint_is_published_first(tmp_path: Path) -> None:
    order: list[str] = []

    class Noting(LocalStorage):
        def publish(self, path: Path, key: str) -> None:
            order.append(key)
            super().publish(path, key)

    storage = Noting(str(tmp_path))
    writer = CheckpointWriter(storage, "c", print)
    assert writer.write(state(2), {"best": state(1)})
    writer.close()
    assert order == ["best", "c"]
    assert [load_checkpoint(storage, key)["iteration"] for key in order] == [1, 2]
