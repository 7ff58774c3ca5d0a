from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.clustering.group_plan import _slots
from pipeline.clustering.trial import Trial, TrialTask
from pipeline.clustering.trial_queue import TrialQueue
from pipeline.config import ClusteringConfig
from pipeline.errors import ClusteringError
from pipeline.paths import RunPaths
from pipeline.storage import LocalStorage


def task(k: int, seed: int = 0, max_failures: int = 1) -> TrialTask:
    config = ClusteringConfig(k=[k], max_failures=max_failures)
    return TrialTask(LocalStorage(str(Path("/nowhere"))), RunPaths("c", "run"), config, Trial(k, seed), [], 0)


@pytest.fixture
def queue() -> TrialQueue:
    queue = TrialQueue()
    queue.add([task(2), task(8), task(4)])
    return queue


def names(queue: TrialQueue, groups: list[str]) -> list[str | None]:
    return [taken.trial.name if (taken := queue.take(group)) else None for group in groups]


def test_the_largest_trial_is_taken_first_and_none_twice(queue: TrialQueue) -> None:
    assert names(queue, ["a", "b", "c", "d"]) == ["k=8-seed=0", "k=4-seed=0", "k=2-seed=0", None]


def test_a_group_whose_workers_died_gets_its_trial_back(queue: TrialQueue) -> None:
    assert names(queue, ["a", "b", "a"]) == ["k=8-seed=0", "k=4-seed=0", "k=8-seed=0"]


def test_the_trial_of_a_lost_group_goes_to_another_group(queue: TrialQueue) -> None:
    names(queue, ["a"])
    queue.release("a")
    assert names(queue, ["b"]) == ["k=8-seed=0"]


def test_a_trial_whose_workers_died_is_taken_before_all_others(queue: TrialQueue) -> None:
    names(queue, ["a", "b"])
    queue.release("b")
    queue.add([task(16), task(4, seed=1)])
    assert names(queue, ["c", "d", "e", "f"]) == ["k=4-seed=0", "k=16-seed=0", "k=4-seed=1", "k=2-seed=0"]


def test_trials_of_one_k_are_taken_in_the_order_of_arrival(queue: TrialQueue) -> None:
    queue.add([task(4, seed) for seed in (3, 1, 2)])
    taken = ["k=8-seed=0", "k=4-seed=0", "k=4-seed=3", "k=4-seed=1", "k=4-seed=2", "k=2-seed=0"]
    assert names(queue, list("abcdef")) == taken


def test_a_trial_whose_workers_die_again_and_again_is_given_up_and_the_others_go_on(queue: TrialQueue) -> None:
    assert names(queue, ["a", "a", "a"]) == ["k=8-seed=0", "k=8-seed=0", "k=4-seed=0"]
    ended = queue.update().ended
    assert list(ended) == ["c/run/k=8-seed=0"]
    assert str(ended["c/run/k=8-seed=0"]) == "trial k=8-seed=0: its workers died 2 times; see Ray's logs"


def test_a_trial_that_cannot_succeed_is_not_tried_again(queue: TrialQueue) -> None:
    names(queue, ["a"])
    queue.give_up("a", ClusteringError("no"))
    assert names(queue, ["a"]) == ["k=4-seed=0"]
    assert str(queue.update().ended["c/run/k=8-seed=0"]) == "no"


def test_an_update_reports_each_event_once(queue: TrialQueue) -> None:
    names(queue, ["a", "b"])
    queue.begin("a", "starts")
    queue.finish("a", 1.25, 6400, 16.0)
    update = queue.update()
    assert update.lines == [
        "c k=8-seed=0: starts",
        "c k=8-seed=0: done, loss 1.25; 6,400 images in 16.0 s, 400 images/s",
    ]
    assert (update.waiting, list(update.running)) == (1, ["c/run/k=4-seed=0"])
    assert update.ended == {"c/run/k=8-seed=0": None}
    assert (queue.update().lines, queue.update().ended) == ([], {})


@pytest.mark.parametrize(
    ("available", "amount", "slots"), [(2, 0.4, 4), (8, 0.25, 32), (3, 1, 3), (4, 2, 2), (5, 2, 2), (0, 0.5, 0)]
)
def test_a_fraction_of_a_gpu_belongs_to_one_gpu(available: float, amount: float, slots: int) -> None:
    assert _slots(available, amount) == slots


def test_a_group_that_never_had_a_trial_is_known(queue: TrialQueue) -> None:
    queue.take("a")
    assert queue.release("a")
    assert not queue.release("b")
