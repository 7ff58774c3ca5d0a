from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from pipeline.clustering.curriculum import Curriculum
from pipeline.config import ScheduleConfig

SCHEDULE = ScheduleConfig(
    window=10, min_iterations=20, max_iterations=95, final_iterations=30, tolerance=0.01, patience=2
)


def test_stages_follow_each_other_and_end() -> None:
    curriculum = Curriculum(SCHEDULE, ["color", "affine"])
    seen = []
    while not curriculum.done:
        seen.append((curriculum.active_modules, curriculum.learning_rate_factor))
        curriculum.update(curriculum.next_window(), 1.0)  # nothing ever improves
    assert list(dict.fromkeys(seen)) == [(0, 1.0), (1, 1.0), (2, 1.0), (2, 0.1)]
    assert [stage.modules for stage in curriculum.history] == [[], ["color"], ["color", "affine"], ["color", "affine"]]
    assert {stage.reason for stage in curriculum.history} == {"converged"}


def test_a_loss_that_keeps_falling_runs_to_the_bound() -> None:
    curriculum = Curriculum(SCHEDULE, [])
    loss = 0.0
    while not curriculum.done:
        loss -= 100.0
        curriculum.update(curriculum.next_window(), loss)
    assert [(stage.iterations, stage.reason) for stage in curriculum.history] == [
        (95, "max_iterations"),
        (30, "max_iterations"),
    ]


def test_every_stage_may_have_its_own_bound() -> None:
    schedule = SCHEDULE.model_copy(update={"max_iterations": [20, 45], "final_iterations": 7})
    curriculum = Curriculum(schedule, ["affine"])
    assert curriculum.iterations_left() == 72
    loss = 0.0
    while not curriculum.done:
        loss -= 100.0
        curriculum.update(curriculum.next_window(), loss)
    assert [stage.iterations for stage in curriculum.history] == [20, 45, 7]


def test_convergence_waits_for_patience_and_minimum() -> None:
    curriculum = Curriculum(SCHEDULE, [])
    for loss in (100.0, 50.0, 49.9, 49.8):  # gains of 50 of 50, 0.1 of 50.1 and 0.1 of 50.2
        ended = curriculum.update(10, loss)
    assert ended
    assert curriculum.history[0].iterations == 40


def test_gains_count_against_those_of_their_own_stage() -> None:
    """After a first stage with a large gain, a later stage with small gains still continues."""
    curriculum = Curriculum(SCHEDULE, [])
    for loss in (1e6, 0.0, 0.0, 0.0):
        curriculum.update(10, loss)
    assert curriculum.stage == 1
    assert not any(curriculum.update(10, loss) for loss in (0.0, -1.0))


@given(st.floats(-1e6, 1e6), st.floats(0.1, 1e3))
def test_convergence_ignores_offset_and_unit_of_the_loss(offset: float, scale: float) -> None:
    losses = [100.0, 50.0, 25.0, 24.0, 23.9, 23.8, 23.7, 23.6]
    plain, moved = Curriculum(SCHEDULE, []), Curriculum(SCHEDULE, [])
    assert [plain.update(10, loss) for loss in losses] == [moved.update(10, offset + scale * x) for x in losses]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60), st.integers(0, 60))
def test_a_restored_curriculum_decides_alike(losses: list[float], at: int) -> None:
    one = Curriculum(SCHEDULE, ["color"])
    other = Curriculum(SCHEDULE, ["color"])
    for index, loss in enumerate(losses):
        if one.done:
            break
        assert one.iterations_left() > 0
        if index == at:
            restored = Curriculum(SCHEDULE, ["color"])
            restored.restore(json.loads(json.dumps(other.state())))
            other = restored
        assert one.update(one.next_window(), loss) == other.update(other.next_window(), loss)
    assert one.state() == other.state()
