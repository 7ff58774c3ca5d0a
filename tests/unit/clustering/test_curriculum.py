from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from pipeline.clustering.curriculum import Curriculum
from pipeline.config import ClusteringConfig, Method, ScheduleConfig, TransformName

SCHEDULE = ScheduleConfig(
    window=10, min_iterations=20, max_iterations=95, final_iterations=30, tolerance=0.01, patience=2
)


def curriculum_of(
    transforms: list[TransformName], method: Method = "dti-kmeans", schedule: ScheduleConfig = SCHEDULE
) -> Curriculum:
    return Curriculum(
        ClusteringConfig(method=method, transforms=transforms, schedule=schedule, initialization="k-means")
    )


def test_stages_follow_each_other_and_end() -> None:
    curriculum = curriculum_of(["affine", "color", "tps"], "dti-gmm")
    seen = []
    while not curriculum.done:
        stage = curriculum.current
        seen.append((stage.predicted, stage.variances, curriculum.learning_rate_factor))
        curriculum.update(curriculum.next_window(), 1.0)  # nothing ever improves
    assert list(dict.fromkeys(seen)) == [
        (0, False, 1.0),
        (1, False, 1.0),
        (2, False, 1.0),
        (2, True, 1.0),
        (2, True, 0.1),
    ]
    assert [stage.modules for stage in curriculum.history] == [
        ["color"],
        ["affine", "color"],
        ["affine", "color", "tps"],
        ["affine", "color", "tps", "variances"],
        ["affine", "color", "tps", "variances"],
    ]
    assert {stage.reason for stage in curriculum.history} == {"converged"}


def test_an_aligned_start_needs_no_stage_without_its_module() -> None:
    def first(method: Method, transforms: list[TransformName]) -> int:
        return Curriculum(ClusteringConfig(method=method, transforms=transforms)).current.predicted

    assert first("dti-gmm", ["color", "projective"]) == first("dti-kmeans", ["affine", "tps"]) == 1
    assert first("dti-gmm", ["morphological", "affine", "tps"]) == 2
    assert first("dti-gmm", ["color", "morphological"]) == first("ti-gmm", ["affine"]) == first("gmm", []) == 0


def test_kmeans_learns_no_variances() -> None:
    curriculum = curriculum_of(["affine"])
    assert [(stage.predicted, stage.variances) for stage in curriculum.stages] == [(0, False), (1, False), (1, False)]
    curriculum.begin_with_all()
    assert curriculum.stage == 1


def test_a_trained_mixture_begins_with_its_variances() -> None:
    curriculum = curriculum_of(["affine"], "dti-gmm")
    curriculum.begin_with_all()
    assert curriculum.current.variances and not curriculum.current.final


def test_a_loss_that_keeps_falling_runs_to_the_bound() -> None:
    curriculum = curriculum_of([])
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
    curriculum = curriculum_of(["affine"], schedule=schedule)
    assert curriculum.iterations_left() == 72
    loss = 0.0
    while not curriculum.done:
        loss -= 100.0
        curriculum.update(curriculum.next_window(), loss)
    assert [stage.iterations for stage in curriculum.history] == [20, 45, 7]


def test_convergence_waits_for_patience_and_minimum() -> None:
    curriculum = curriculum_of([])
    for loss in (100.0, 50.0, 49.9, 49.8):  # gains of 50 of 50, 0.1 of 50.1 and 0.1 of 50.2
        ended = curriculum.update(10, loss)
    assert ended
    assert curriculum.history[0].iterations == 40


def test_gains_count_against_those_of_their_own_stage() -> None:
    """After a first stage with a large gain, a later stage with small gains still continues."""
    curriculum = curriculum_of([])
    for loss in (1e6, 0.0, 0.0, 0.0):
        curriculum.update(10, loss)
    assert curriculum.stage == 1
    assert not any(curriculum.update(10, loss) for loss in (0.0, -1.0))


@given(st.floats(-1e6, 1e6), st.floats(0.1, 1e3))
def test_convergence_ignores_offset_and_unit_of_the_loss(offset: float, scale: float) -> None:
    losses = [100.0, 50.0, 25.0, 24.0, 23.9, 23.8, 23.7, 23.6]
    plain, moved = curriculum_of([]), curriculum_of([])
    assert [plain.update(10, loss) for loss in losses] == [moved.update(10, offset + scale * x) for x in losses]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60), st.integers(0, 60))
def test_a_restored_curriculum_decides_alike(losses: list[float], at: int) -> None:
    one = curriculum_of(["affine"])
    other = curriculum_of(["affine"])
    for index, loss in enumerate(losses):
        if one.done:
            break
        assert one.iterations_left() > 0
        if index == at:
            restored = curriculum_of(["affine"])
            restored.restore(json.loads(json.dumps(other.state())))
            other = restored
        assert one.update(one.next_window(), loss) == other.update(other.next_window(), loss)
    assert one.state() == other.state()
