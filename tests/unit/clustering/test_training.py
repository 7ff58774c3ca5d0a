from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from pipeline.clustering.checkpoint import CheckpointWriter, load_checkpoint, load_method
from pipeline.clustering.data.images import ImageSet
from pipeline.clustering.snapshots import snapshots_of
from pipeline.clustering.training import TrialTraining, Window, bucket_mb
from pipeline.clustering.trial import Trial, TrialResult
from pipeline.clustering.workers import connected
from pipeline.config import ClusteringConfig
from pipeline.errors import ClusteringError
from pipeline.storage import LocalStorage
from tests.support.worker_processes import begin_worker

SCHEDULE = {"window": 3, "min_iterations": 6, "max_iterations": 9, "final_iterations": 6}


def configuration(**more: Any) -> ClusteringConfig:
    values: dict[str, Any] = {
        "k": [3],
        "transforms": ["color", "affine"],
        "batch_size": 8,
        "precision": "float32",
        "checkpoint_every_s": 0,
        "schedule": SCHEDULE,
        **more,
    }
    return ClusteringConfig.model_validate(values)


def collection(n: int = 30, size: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (3, 3, size, size), generator=generator)
    noise = torch.randint(-20, 20, (n, 3, size, size), generator=generator)
    return (views[torch.arange(n) % 3] + noise).clamp(0, 255).to(torch.uint8)


def training(folder: Path, **more: Any) -> TrialTraining:
    storage = LocalStorage(str(folder))
    return TrialTraining(
        configuration(**more),
        Trial(3, 1),
        ImageSet.of(collection()),
        storage,
        "t/checkpoint.pt",
        "t/best.pt",
        torch.device("cpu"),
    )


@pytest.fixture(autouse=True)
def checkpoints_are_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine one would be left out while the one before it is still being written."""
    begin = CheckpointWriter.write

    def write(writer: CheckpointWriter, *states: Any) -> bool:
        begun = begin(writer, *states)
        writer.close()
        return begun

    monkeypatch.setattr(CheckpointWriter, "write", write)


class Killed(Exception):  # noqa: N818
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", [3, 6, 12, 18, 24])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, at: int) -> None:
    """Bit for bit, wherever it was killed: before, at and after a change of stage."""
    whole = training(tmp_path / "whole")
    expected = whole.run()

    def kill(window: Window) -> None:
        # One window after the last checkpoint, so that work is lost and repeated.
        if window.iteration > at:
            raise Killed

    with pytest.raises(Killed):
        training(tmp_path / "cut").run(kill)
    resumed = training(tmp_path / "cut")
    assert resumed.iteration == at
    result = resumed.run()
    assert (result.loss, result.iterations, result.history, result.stages) == (
        expected.loss,
        expected.iterations,
        expected.history,
        expected.stages,
    )
    assert resumed.snapshots.taken == whole.snapshots.taken
    assert [taken.iteration for taken in whole.snapshots.taken] == [0, *(point.iteration for point in result.history)]
    for one, other in zip(resumed.method.state_dict().values(), whole.method.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_final_checkpoint_is_the_model(tmp_path: Path) -> None:
    trained = training(tmp_path)
    trained.run()
    storage = LocalStorage(str(tmp_path))
    method = load_method(storage, "t/checkpoint.pt")
    batch = collection()[:5].float() / 255
    trained.method.eval()
    expected, actual = trained.method.assign(batch), method.assign(batch)
    assert torch.equal(actual.loss_B, expected.loss_B)
    assert list(actual.parameters) == ["color", "affine"]
    state = load_checkpoint(storage, "t/checkpoint.pt")
    assert state["optimizer"] is None
    assert snapshots_of(state) == trained.snapshots.taken


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"format": 1, "model": Hostile()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ClusteringError, match="not a checkpoint"):
        load_method(LocalStorage(str(tmp_path)), "checkpoint.pt")
    assert not (tmp_path / "ran").exists()


def test_a_result_survives_its_document(tmp_path: Path) -> None:
    result = training(tmp_path).run()
    assert TrialResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert result.image_passes == 8 * result.iterations
    assert sum(stage.iterations for stage in result.stages) == result.iterations


def test_the_loss_is_that_of_all_images(tmp_path: Path) -> None:
    trained = training(tmp_path)
    result = trained.run()
    trained.method.eval()
    losses = trained.method.assign(collection().float() / 255).loss_B
    assert result.loss == pytest.approx(float(losses.mean()), rel=1e-6)


def test_planted_views_are_found(tmp_path: Path) -> None:
    schedule = {"window": 20, "min_iterations": 100, "max_iterations": 200, "final_iterations": 0}
    trained = training(tmp_path, transforms=[], batch_size=16, schedule=schedule, learning_rate=0.01)
    trained.run()
    cluster = trained.method.assign(collection().float() / 255).cluster_B
    assert len({(int(c), i % 3) for i, c in enumerate(cluster)}) == 3


def test_more_prototypes_than_images_are_refused(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    with pytest.raises(ClusteringError, match="above the 2 images"):
        TrialTraining(configuration(), Trial(3, 0), ImageSet.of(collection(2)), storage, "c", "b", torch.device("cpu"))


def test_a_loss_that_is_no_number_stops_the_trial_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    trained = training(tmp_path)
    with pytest.raises(Killed):
        trained.run(lambda window: (_ for _ in ()).throw(Killed) if window.iteration > 3 else None)
    resumed = training(tmp_path)
    resumed.method.prototypes.data.fill_(float("nan"))
    with pytest.raises(ClusteringError, match=r"iteration 4 of stage identity, in prototypes"):
        resumed.run()
    assert training(tmp_path).iteration == 3


def test_a_broken_last_step_is_never_kept(tmp_path: Path) -> None:
    """The loss is that before the step, so the parameters are looked at as well."""
    trained = training(tmp_path)
    with pytest.raises(Killed):
        trained.run(lambda window: (_ for _ in ()).throw(Killed) if window.iteration > 3 else None)
    resumed = training(tmp_path)
    step = resumed.optimizer.step

    def broken(*_: Any) -> None:
        step()
        if resumed.iteration == 5:
            resumed.method.prototypes.data[0, 0, 0, 0] = float("inf")

    resumed.optimizer.step = broken  # type: ignore[assignment]
    with pytest.raises(ClusteringError, match=r"not finite at iteration 6 .* in prototypes"):
        resumed.run()
    assert training(tmp_path).iteration == 3


def complete_windows(window: Window, run: TrialTraining, seen: dict[int, tuple[float, Tensor]]) -> None:
    """Note loss and prototypes at the ends of windows with all modules."""
    if run.history and run.history[-1].iteration == window.iteration and run.history[-1].active_modules == 2:
        seen[window.iteration] = (window.loss, run.method.prototypes.detach().clone())


def test_the_best_model_is_kept_beside_the_last_checkpoint(tmp_path: Path) -> None:
    """At a learning rate at which the loss goes up and down."""
    seen: dict[int, tuple[float, Tensor]] = {}
    schedule = {"window": 1, "min_iterations": 2, "max_iterations": [2, 2, 30], "final_iterations": 0, "patience": 99}
    run = training(tmp_path, learning_rate=0.2, schedule=schedule)
    storage = LocalStorage(str(tmp_path))

    def follow(window: Window) -> None:
        if window.iteration <= 5:
            assert not storage.exists("t/best.pt"), "not before all modules are active"
        if window.iteration == 30:
            raise Killed
        complete_windows(window, run, seen)

    with pytest.raises(Killed):
        run.run(follow)
    best = min(seen, key=lambda iteration: seen[iteration][0])
    assert best < 29, "the test needs a model that was better than the last"
    kept = load_method(storage, "t/best.pt")
    assert torch.equal(kept.prototypes, seen[best][1])
    assert kept.active_modules == 2
    assert load_checkpoint(storage, "t/checkpoint.pt")["iteration"] == 29
    assert training(tmp_path, learning_rate=0.2, schedule=schedule).best_loss == seen[best][0]


@pytest.mark.parametrize("last", [0.5, 1.0, 2.0])
def test_the_best_model_stays_where_the_last_is_worse(tmp_path: Path, last: float) -> None:
    """With all modules the loss of the first window is made 1, that of later ones 5, and that of all images `last`."""
    run = training(tmp_path)
    run.evaluate = lambda: last  # type: ignore[method-assign]

    def follow(_: Window) -> None:
        point = run.history[-1]
        if point.active_modules == 2:
            run.history[-1] = replace(point, loss=1.0 if run.history[-2].active_modules < 2 else 5.0)

    run.run(follow)
    assert run.best_loss == 1
    assert LocalStorage(str(tmp_path)).exists("t/best.pt") == (last > 1)


def test_a_broken_trial_names_its_best_model(tmp_path: Path) -> None:
    run = training(tmp_path)
    step = run.optimizer.step

    def broken(*_: Any) -> None:
        step()
        if run.history and run.history[-1].active_modules == 2:
            run.method.prototypes.data.fill_(float("nan"))

    run.optimizer.step = broken  # type: ignore[assignment]
    with pytest.raises(ClusteringError, match=r"the last checkpoint is kept, and the best model in .*/t/best\.pt;"):
        run.run()
    assert load_method(LocalStorage(str(tmp_path)), "t/best.pt").prototypes.isfinite().all()


def test_a_checkpoint_that_was_left_out_is_due_at_the_next_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every window takes a second here, and the storage is busy in the fourth and fifth."""
    now = 0.0
    tried: list[float] = []

    def write(_: CheckpointWriter, *states: Any) -> bool:
        tried.append(now)
        return now not in {4, 5}

    def a_second_later(_: Window) -> None:
        nonlocal now
        now += 1

    run = training(tmp_path, checkpoint_every_s=4)
    monkeypatch.setattr(CheckpointWriter, "write", write)
    monkeypatch.setattr("pipeline.clustering.training.time", SimpleNamespace(monotonic=lambda: now))
    run.run(a_second_later)
    assert tried[:4] == [4, 5, 6, 10]


def test_gradients_travel_in_a_few_parts() -> None:
    def parameters(*mib: float) -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(torch.zeros(int(size * 2**18))) for size in mib]

    assert bucket_mb(parameters(20, 20)) == 10
    assert bucket_mb(parameters(0.5)) == 1
    still, moving = parameters(40, 12)
    still.requires_grad = False
    assert bucket_mb([still, moving]) == 3


def train_as_worker(rank: int, world_size: int, folder: str, schedule: dict[str, int]) -> None:
    """Body of one DDP process of the test below."""
    torch.set_default_dtype(torch.float64)
    begin_worker(rank, world_size, folder)
    with connected(60.0):
        run = training(Path(folder) / f"rank{rank}", schedule=schedule)
        run.run()
    torch.save(run.method.state_dict(), Path(folder) / f"model{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Rounding differs between one sum and two; Adam magnifies that where a gradient is about zero."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_precision")
def test_two_workers_compute_what_one_computes(tmp_path: Path) -> None:
    schedule = {"window": 2, "min_iterations": 2, "max_iterations": 4, "final_iterations": 2}
    single = training(tmp_path / "single", schedule=schedule)
    single.run()
    spawn(train_as_worker, (2, str(tmp_path), schedule), nprocs=2)
    models = [torch.load(tmp_path / f"model{rank}.pt", weights_only=True) for rank in range(2)]
    for name, expected in single.method.state_dict().items():
        assert torch.equal(models[0][name], models[1][name]), f"the workers differ in {name}"
        torch.testing.assert_close(models[0][name], expected, atol=1e-7, rtol=1e-6)


def train_with_a_pause(rank: int, world_size: int, folder: str) -> None:
    """Body of one worker of the test below."""
    begin_worker(rank, world_size, folder)
    with connected(60.0):
        whole, part = (Path(folder) / name for name in ("whole", "part"))
        expected = training(whole, batch_size=12)
        result = expected.run()
        training(part, batch_size=12).run(until=12)
        dist.barrier()  # the checkpoint is there
        again = training(part, batch_size=12)
        assert again.iteration == 12
        assert again.run().history == result.history
    for name, value in expected.method.state_dict().items():
        assert torch.equal(again.method.state_dict()[name], value), name
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_on_one_machine_go_on_as_if_they_had_not_paused(tmp_path: Path, world_size: int) -> None:
    spawn(train_with_a_pause, (world_size, str(tmp_path)), nprocs=world_size)


@pytest.mark.parametrize(("k", "batch"), [(1, 8), (30, 8), (3, 64)])
@pytest.mark.parametrize("method", ["dti-gmm", "dti-kmeans", "gmm", "kmeans", "ti-gmm", "ti-kmeans"])
def test_extreme_sizes(tmp_path: Path, method: str, k: int, batch: int) -> None:
    """One prototype, one for each image, and a batch larger than the collection."""
    transforms = {} if method in {"gmm", "kmeans"} else {"transforms": ["color", "affine"]}
    schedule = {"window": 2, "min_iterations": 2, "max_iterations": 2, "final_iterations": 0}
    values = {"method": method, "batch_size": batch, "alignment_steps": 2, "schedule": schedule, **transforms}
    config = ClusteringConfig.model_validate(values)
    storage = LocalStorage(str(tmp_path))
    trained = TrialTraining(config, Trial(k, 0), ImageSet.of(collection()), storage, "c", "b", torch.device("cpu"))
    assert trained.run().history[-1].largest_share <= 1


@pytest.mark.parametrize("until", [1, 9, 14])
def test_a_trial_that_pauses_goes_on_as_if_it_had_not(tmp_path: Path, until: int) -> None:
    expected = training(tmp_path / "whole").run()
    paused = training(tmp_path / "part")
    result = paused.run(until=until)
    assert until <= result.iterations < until + 3, "to within a window"
    assert result.loss == pytest.approx(paused.evaluate())
    again = training(tmp_path / "part").run()
    assert (again.loss, again.history) == (expected.loss, expected.history)


def test_a_checkpoint_of_an_earlier_version_has_no_snapshots(tmp_path: Path) -> None:
    training(tmp_path).run(until=6)
    storage, key = LocalStorage(str(tmp_path)), "t/checkpoint.pt"
    state = load_checkpoint(storage, key)
    del state["snapshots"]
    CheckpointWriter(storage, key, print).finish(state)
    resumed = training(tmp_path)
    resumed.run(until=12)
    assert [taken.iteration for taken in resumed.snapshots.taken] == [9, 12]


def test_other_workers_are_mentioned(tmp_path: Path) -> None:
    training(tmp_path).run(until=3)
    key = "t/checkpoint.pt"
    state = load_checkpoint(LocalStorage(str(tmp_path)), key)
    CheckpointWriter(LocalStorage(str(tmp_path)), key, print).finish({**state, "workers": 2})
    assert training(tmp_path).origin == "continues at iteration 3, with 1 workers instead of 2"
