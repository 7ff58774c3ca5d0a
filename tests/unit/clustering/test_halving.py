from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clustering.halving import better_half, halve, rungs
from pipeline.clustering.trial import HistoryPoint, Trial, TrialResult, TrialTask, loss_at
from pipeline.config import ClusteringConfig
from pipeline.console import about
from pipeline.errors import ClusteringError
from pipeline.paths import RunPaths
from pipeline.storage import LocalStorage, write_json


def config(seeds: int) -> ClusteringConfig:
    schedule = {"max_iterations": 1000, "final_iterations": 200}
    return ClusteringConfig.model_validate({"k": [4, 8], "transforms": ["color"], "seeds": seeds, "schedule": schedule})


@pytest.mark.parametrize(("seeds", "expected"), [(1, []), (2, [1100]), (3, [550, 1100]), (5, [275, 550, 1100])])
def test_rungs_end_half_way(seeds: int, expected: list[int]) -> None:
    assert rungs(config(seeds)) == expected


@given(st.dictionaries(st.builds(Trial, st.just(4), st.integers(0, 20)), st.floats(-9, 9), min_size=1))
def test_no_stopped_seed_is_better_than_one_that_is_kept(losses: dict[Trial, float]) -> None:
    kept = better_half(losses)
    assert len(kept) == (len(losses) + 1) // 2
    assert all(losses[trial] >= max(losses[k] for k in kept) for trial in losses if trial not in kept)


class Training:
    """A trainer whose trials have losses that fall at different rates; one of them ends early."""

    def __init__(self, folder: Path) -> None:
        self.storage, self.paths = LocalStorage(str(folder)), RunPaths("c", "run")
        self.trained: list[tuple[str, int | None]] = []

    def __call__(self, tasks: Sequence[TrialTask]) -> None:
        for task in tasks:
            trial, until = task.trial, task.until
            self.trained.append((trial.name, until))
            if until is None:
                self.end(trial, 1200)
                continue
            loss = 100.0 * trial.k - until * (trial.seed + 1)
            if trial == Trial(8, 0):
                self.end(trial, until)
            else:
                write_json(self.storage, self.paths.rung(trial.name, until), {"loss": loss})

    def tasks(self, config: ClusteringConfig) -> list[TrialTask]:
        trials = [Trial(k, seed) for k in (4, 8) for seed in range(config.seeds)]
        return [TrialTask(self.storage, self.paths, config, trial, [], 0) for trial in trials]

    def end(self, trial: Trial, iteration: int) -> None:
        history = [HistoryPoint(iteration, -1e9, 1e-3, 1, 0, 0.5, 0.1)]
        result = TrialResult(trial.k, trial.seed, 5.0, iteration, 1, 1.0, 1, [], history, [])
        write_json(self.storage, self.paths.trial_marker(trial.name), result.to_json())
        self.storage.write_bytes(self.paths.checkpoint(trial.name), b"")


def test_the_better_half_of_each_k_is_trained_further(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = Training(tmp_path)
    assert halve(training.tasks(config(4)), training) == [Trial(4, 3), Trial(8, 0)]
    first, second, last = (
        sorted(name for name, until in training.trained if until == rung) for rung in (550, 1100, None)
    )
    assert len(first) == 8
    assert second == ["k=4-seed=2", "k=4-seed=3", "k=8-seed=3"], "a trial that is done is not trained again"
    assert last == ["k=4-seed=3"]
    assert "stopped after 550 iterations: k=4-seed=0 (-150), k=4-seed=1 (-700); the best" in capsys.readouterr().out
    # A job that is submitted again makes the same decisions, and trains nothing.
    training.trained.clear()
    assert halve(training.tasks(config(4)), training) == [Trial(4, 3), Trial(8, 0)]
    assert not training.trained


def test_no_k_waits_for_another(tmp_path: Path) -> None:
    """K = 4 is trained to the end while the trials of K = 8 are delayed."""
    training, done = Training(tmp_path), threading.Event()

    def train(tasks: Sequence[TrialTask]) -> None:
        if tasks[0].trial.k == 8:
            assert done.wait(30)
        training(tasks)
        if tasks[0].trial.k == 4 and tasks[0].until is None:
            done.set()

    assert halve(training.tasks(config(4)), train) == [Trial(4, 3), Trial(8, 0)]


def test_console_lines_of_every_k_name_their_subject(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = Training(tmp_path)
    with about("rome"):
        halve(training.tasks(config(2)), training)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("cluster   rome: ") for line in lines)


def test_a_k_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    training = Training(tmp_path)

    def train(tasks: Sequence[TrialTask]) -> None:
        if tasks[0].trial.k == 4:
            raise ClusteringError("four is broken")
        training(tasks)

    with pytest.raises(ClusteringError, match="four is broken"):
        halve(training.tasks(config(2)), train)
    assert training.storage.exists(training.paths.trial_marker("k=8-seed=0"))


def test_a_trial_that_is_further_is_compared_at_the_same_iteration() -> None:
    history = [HistoryPoint(10 * i, 100.0 - i, 1e-3, 1, 0, 0.5, 0.1) for i in range(1, 5)]
    assert [loss_at(history, iteration) for iteration in (10, 15, 40, 99)] == [99, 98, 96, 96]


def test_a_warm_start_is_shorter_and_so_are_its_rungs() -> None:
    warm = config(2).model_copy(update={"warm_start": "run"})
    assert rungs(warm) == [600]
