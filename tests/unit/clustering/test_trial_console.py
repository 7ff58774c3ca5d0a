"""Console output about trials, and estimates of the remaining time."""

from __future__ import annotations

import pytest

from pipeline.clustering.trial import Trial, TrialProgress
from pipeline.clustering.trial_console import ENCODER_COST, SILENCE_S, StageCosts, TrialConsole
from pipeline.clustering.trial_queue import QueueUpdate


def test_times_with_an_encoder_are_not_estimated_from_those_without_one() -> None:
    """After 100 iterations without a module took 1 s, those with a module are assumed to take far longer."""
    costs = StageCosts()
    assert costs.seconds_left([(0, 100)]) is None
    costs.add(0, 100, 1.0)
    assert costs.seconds_left([(0, 100)]) == pytest.approx(1.0)
    assert costs.seconds_left([(0, 100), (1, 100), (2, 100)]) == pytest.approx(1 + 2 * ENCODER_COST)


def test_measurements_replace_assumptions() -> None:
    costs = StageCosts()
    costs.add(0, 100, 1.0)
    costs.add(1, 10, 5.0)
    assert costs.seconds_left([(1, 100), (2, 100)]) == pytest.approx(100), "the most similar stage that was measured"
    costs.add(2, 10, 8.0)
    assert costs.seconds_left([(0, 100), (1, 100), (2, 100)]) == pytest.approx(1 + 50 + 80)


def test_times_without_an_encoder_are_estimated_from_those_with_one() -> None:
    costs = StageCosts()
    costs.add(2, 10, 10.0)
    assert costs.seconds_left([(0, 100)]) == pytest.approx(100 / ENCODER_COST)


def progress(iteration: int, seconds: float, modules: int = 0) -> TrialProgress:
    names = ["color", "projective"][:modules]
    return TrialProgress(Trial(8, 0), iteration, -3875.25, modules, names, seconds, [(modules, 100), (2, 50)])


def update(*lines: str, waiting: int = 0, **running: TrialProgress) -> QueueUpdate:
    return QueueUpdate(list(lines), waiting, dict(running), {})


def test_a_log_has_events_and_a_status_line_at_intervals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = TrialConsole(poll_s=1.0)
    console.show(update("c k=8-seed=0: starts", a=progress(0, 0.0)))
    console.show(update(a=progress(100, 1.0)))
    assert capsys.readouterr().out.splitlines() == ["cluster   c k=8-seed=0: starts"]
    monkeypatch.setattr("pipeline.console.LOG_INTERVAL_S", 0.0)
    console.show(update(a=progress(200, 2.0), waiting=1))
    console.show(update(a=progress(200, 2.0), waiting=1))
    console.close()
    assert capsys.readouterr().out.splitlines() == [
        "cluster   k=8-seed=0 iteration 200, loss -3875.25, no module; 1 trial waiting; at most 51.0 s left of this"
    ]


def test_missing_workers_are_mentioned_once(capsys: pytest.CaptureFixture[str]) -> None:
    console = TrialConsole(poll_s=10.0)
    for _ in range(2 * int(SILENCE_S) // 10):
        console.show(update(waiting=2))
    assert capsys.readouterr().out.count("still waiting for workers") == 1
