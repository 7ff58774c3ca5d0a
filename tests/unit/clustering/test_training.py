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
from pipeline.clustering.training import TrialTraining, bucket_mb
from pipeline.clustering.trial import Trial, TrialProgress, TrialResult
from pipeline.config import ClusteringConfig
from pipeline.errors import ClusteringError
from pipeline.storage import LocalStorage
from tests.support.trial_tasks import trial_task
from tests.support.worker_processes import process_group

CHECKPOINT = "c/runs/run/trials/k=3-seed=1/checkpoint.pt"
BEST = "c/runs/run/trials/k=3-seed=1/best.pt"
SCHEDULE = {"window": 3, "min_iterations": 6, "max_iterations": 9, "final_iterations": 6}


def configuration(**more: Any) -> ClusteringConfig:
    values: dict[str, Any] = {
        "k": [3],
        "transforms": ["color", "affine"],
        "batch_size": 8,
        "precision": "float32",
        "initialization": "k-means",
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


def training(folder: Path, until: int | None = None, **more: Any) -> TrialTraining:
    task = trial_task(LocalStorage(str(folder)), configuration(**more), Trial(3, 1), until=until)
    return TrialTraining(task, ImageSet.of(collection()), torch.device("cpu"))


@pytest.fixture(autouse=True)
def synchronous_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, a checkpoint would be skipped while an earlier one is still being written."""
    start = CheckpointWriter.write

    def write(writer: CheckpointWriter, *states: Any) -> bool:
        started = start(writer, *states)
        writer.close()
        return started

    monkeypatch.setattr(CheckpointWriter, "write", write)


class Killed(Exception):  # noqa: N818
    """Simulates the death of the process."""


@pytest.mark.parametrize(("initialization", "at"), [*(("k-means", at) for at in (3, 6, 12, 18, 24)), ("aligned", 3)])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, initialization: str, at: int) -> None:
    """They are equal bit for bit, whether the run was killed before, at or after a change of stage."""
    whole = training(tmp_path / "whole", initialization=initialization)
    expected = whole.run()

    def kill(progress: TrialProgress) -> None:
        # The run is killed one window after the last checkpoint, so that work is lost and repeated.
        if progress.iteration > at:
            raise Killed

    with pytest.raises(Killed):
        training(tmp_path / "cut", initialization=initialization).run(kill)
    resumed = training(tmp_path / "cut", initialization=initialization)
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


def test_the_final_checkpoint_contains_the_model(tmp_path: Path) -> None:
    trained = training(tmp_path)
    trained.run()
    storage = LocalStorage(str(tmp_path))
    method = load_method(storage, CHECKPOINT)
    batch = collection()[:5].float() / 255
    trained.method.eval()
    expected, actual = trained.method.assign(batch), method.assign(batch)
    assert torch.equal(actual.loss_B, expected.loss_B)
    assert list(actual.parameters) == ["color", "affine"]
    state = load_checkpoint(storage, CHECKPOINT)
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


def test_a_result_is_restored_from_its_document(tmp_path: Path) -> None:
    result = training(tmp_path).run()
    assert TrialResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert result.image_passes == 8 * result.iterations
    assert sum(stage.iterations for stage in result.stages) == result.iterations


def test_the_loss_is_the_mean_over_all_images(tmp_path: Path) -> None:
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
        TrialTraining(
            trial_task(storage, configuration(), Trial(3, 0)), ImageSet.of(collection(2)), torch.device("cpu")
        )


def test_a_loss_that_is_not_finite_stops_the_trial_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    trained = training(tmp_path)
    with pytest.raises(Killed):
        trained.run(lambda progress: (_ for _ in ()).throw(Killed) if progress.iteration > 3 else None)
    resumed = training(tmp_path)
    resumed.method.prototypes.data.fill_(float("nan"))
    with pytest.raises(ClusteringError, match=r"iteration 4 of stage color, in prototypes"):
        resumed.run()
    assert training(tmp_path).iteration == 3


def test_a_broken_last_step_is_never_stored(tmp_path: Path) -> None:
    """The loss is computed before the step, so the parameters are checked as well."""
    trained = training(tmp_path)
    with pytest.raises(Killed):
        trained.run(lambda progress: (_ for _ in ()).throw(Killed) if progress.iteration > 3 else None)
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


def complete_windows(progress: TrialProgress, run: TrialTraining, seen: dict[int, tuple[float, Tensor]]) -> None:
    """Record in `seen` loss and prototypes at the ends of windows with all modules and variances."""
    if run.history and run.history[-1].iteration == progress.iteration and "variances" in progress.modules:
        seen[progress.iteration] = (progress.loss, run.method.prototypes.detach().clone())


def test_the_best_model_is_kept_beside_the_last_checkpoint(tmp_path: Path) -> None:
    """The learning rate is so high that the loss goes up and down."""
    seen: dict[int, tuple[float, Tensor]] = {}
    schedule = {"window": 1, "min_iterations": 2, "max_iterations": [2, 2, 30], "final_iterations": 0, "patience": 99}
    run = training(tmp_path, learning_rate=0.2, schedule=schedule)
    storage = LocalStorage(str(tmp_path))

    def follow(progress: TrialProgress) -> None:
        if progress.iteration <= 5:
            assert not storage.exists(BEST), "variances are not learned yet"
        if progress.iteration == 30:
            raise Killed
        complete_windows(progress, run, seen)

    with pytest.raises(Killed):
        run.run(follow)
    best = min(seen, key=lambda iteration: seen[iteration][0])
    assert best < 29, "the test needs a model that was better than the last one"
    kept = load_method(storage, BEST)
    assert torch.equal(kept.prototypes, seen[best][1])
    assert kept.learns_variances and kept.active_names == ["color", "affine"]
    assert load_checkpoint(storage, CHECKPOINT)["iteration"] == 29
    assert training(tmp_path, learning_rate=0.2, schedule=schedule).best_loss == seen[best][0]


@pytest.mark.parametrize("last", [0.5, 1.0, 2.0])
def test_the_best_model_is_kept_if_the_last_is_worse(tmp_path: Path, last: float) -> None:
    """With variances, the loss of the first window is set to 1, of later ones to 5, and of all images to `last`."""
    run = training(tmp_path)
    run.evaluate = lambda: (last, [])  # type: ignore[method-assign]

    complete: list[int] = []

    def follow(progress: TrialProgress) -> None:
        if run.history[-1].iteration == progress.iteration and "variances" in progress.modules:
            complete.append(progress.iteration)
            run.history[-1] = replace(run.history[-1], loss=1.0 if len(complete) == 1 else 5.0)

    run.run(follow)
    assert run.best_loss == 1
    assert LocalStorage(str(tmp_path)).exists(BEST) == (last > 1)


def test_the_error_of_a_broken_trial_names_its_best_model(tmp_path: Path) -> None:
    run = training(tmp_path)
    step = run.optimizer.step

    def broken(*_: Any) -> None:
        step()
        if run.curriculum.current.variances and run.curriculum.iterations:
            run.method.prototypes.data.fill_(float("nan"))

    run.optimizer.step = broken  # type: ignore[assignment]
    with pytest.raises(ClusteringError, match=r"the last checkpoint is kept, and the best model in .*/best\.pt;"):
        run.run()
    assert load_method(LocalStorage(str(tmp_path)), BEST).prototypes.isfinite().all()


def test_a_skipped_checkpoint_is_due_at_the_next_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every window takes a second here, and checkpoints are skipped at 4 and 5 seconds."""
    now = 0.0
    attempts: list[float] = []

    def write(_: CheckpointWriter, *states: Any) -> bool:
        attempts.append(now)
        return now not in {4, 5}

    def a_second_later(_: TrialProgress) -> None:
        nonlocal now
        now += 1

    run = training(tmp_path, checkpoint_every_s=4)
    monkeypatch.setattr(CheckpointWriter, "write", write)
    monkeypatch.setattr("pipeline.clustering.training.time", SimpleNamespace(monotonic=lambda: now))
    run.run(a_second_later)
    assert attempts[:4] == [4, 5, 6, 10]


def test_gradients_are_exchanged_in_a_few_buckets() -> None:
    def parameters(*mib: float) -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(torch.zeros(int(size * 2**18))) for size in mib]

    assert bucket_mb(parameters(20, 20)) == 10
    assert bucket_mb(parameters(0.5)) == 1
    frozen, trained = parameters(40, 12)
    frozen.requires_grad = False
    assert bucket_mb([frozen, trained]) == 3


def train_as_worker(rank: int, world_size: int, folder: str, options: dict[str, Any]) -> None:
    """Run one DDP worker of the test below."""
    torch.set_default_dtype(torch.float64)
    with process_group(rank, world_size, folder):
        run = training(Path(folder) / f"rank{rank}", **options)
        run.run()
    torch.save(run.method.state_dict(), Path(folder) / f"model{rank}.pt")


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Compute in float64: rounding depends on the number of workers, and Adam magnifies this for tiny gradients."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.slow
@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("initialization", ["aligned", "k-means"])
def test_two_workers_compute_what_one_computes(tmp_path: Path, initialization: str) -> None:
    schedule = {"window": 2, "min_iterations": 2, "max_iterations": 4, "final_iterations": 2}
    options: dict[str, Any] = {"initialization": initialization, "schedule": schedule}
    single = training(tmp_path / "single", **options)
    single.run()
    spawn(train_as_worker, (2, str(tmp_path), options), nprocs=2)
    models = [torch.load(tmp_path / f"model{rank}.pt", weights_only=True) for rank in range(2)]
    for name, expected in single.method.state_dict().items():
        assert torch.equal(models[0][name], models[1][name]), f"the workers differ in {name}"
        torch.testing.assert_close(models[0][name], expected, atol=1e-7, rtol=1e-6)


def train_with_a_pause(rank: int, world_size: int, folder: str) -> None:
    """Run one worker of the test below: the resumed run must repeat the uninterrupted one."""
    with process_group(rank, world_size, folder):
        whole, part = (Path(folder) / name for name in ("whole", "part"))
        expected = training(whole, batch_size=12)
        result = expected.run()
        training(part, until=12, batch_size=12).run()
        dist.barrier()  # wait for the checkpoint
        again = training(part, batch_size=12)
        assert again.iteration == 12
        repeated = again.run()
        exact = world_size <= 2  # with more workers, DDP adds gradients in another order in its first step
        for one, other in zip(repeated.history, result.history, strict=True):
            assert one == other if exact else one.loss == pytest.approx(other.loss, rel=1e-3)
        found = again.method.state_dict()
        for name, value in expected.method.state_dict().items():
            assert not exact or torch.equal(found[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_continue_as_if_they_had_not_paused(tmp_path: Path, world_size: int) -> None:
    spawn(train_with_a_pause, (world_size, str(tmp_path)), nprocs=world_size)


@pytest.mark.parametrize(("k", "batch"), [(1, 8), (30, 8), (3, 64)])
@pytest.mark.parametrize("method", ["dti-gmm", "dti-kmeans", "gmm", "kmeans", "ti-gmm", "ti-kmeans"])
def test_extreme_sizes(tmp_path: Path, method: str, k: int, batch: int) -> None:
    """A single prototype, one prototype per image, and a batch larger than the collection."""
    transforms = {} if method in {"gmm", "kmeans"} else {"transforms": ["color", "affine"]}
    schedule = {"window": 2, "min_iterations": 2, "max_iterations": 2, "final_iterations": 0}
    values = {"method": method, "batch_size": batch, "alignment_steps": 2, "schedule": schedule, **transforms}
    config = ClusteringConfig.model_validate(values)
    storage = LocalStorage(str(tmp_path))
    trained = TrialTraining(trial_task(storage, config, Trial(k, 0)), ImageSet.of(collection()), torch.device("cpu"))
    assert trained.run().history[-1].largest_share <= 1


@pytest.mark.slow
@pytest.mark.parametrize("until", [1, 9, 14])
def test_a_trial_continues_as_if_it_had_not_paused(tmp_path: Path, until: int) -> None:
    expected = training(tmp_path / "whole").run()
    paused = training(tmp_path / "part", until=until)
    result = paused.run()
    assert until <= result.iterations < until + 3, "the pause is at the end of a window"
    assert result.loss == pytest.approx(paused.evaluate()[0])
    again = training(tmp_path / "part").run()
    assert (again.loss, again.history) == (expected.loss, expected.history)


def test_a_checkpoint_of_an_earlier_version_has_no_snapshots(tmp_path: Path) -> None:
    training(tmp_path, until=6).run()
    storage, key = LocalStorage(str(tmp_path)), CHECKPOINT
    state = load_checkpoint(storage, key)
    del state["snapshots"]
    CheckpointWriter(storage, key, print).finish(state)
    resumed = training(tmp_path, until=12)
    resumed.run()
    assert [taken.iteration for taken in resumed.snapshots.taken] == [9, 12]


def test_another_number_of_workers_is_mentioned(tmp_path: Path) -> None:
    training(tmp_path, until=3).run()
    key = CHECKPOINT
    state = load_checkpoint(LocalStorage(str(tmp_path)), key)
    CheckpointWriter(LocalStorage(str(tmp_path)), key, print).finish({**state, "workers": 2})
    assert training(tmp_path).origin == "continues at iteration 3, with 1 workers instead of 2"
