from __future__ import annotations

from dataclasses import replace

from pipeline.clustering.health import symptoms_of
from pipeline.clustering.trial import ClusterRecord, HistoryPoint, StageRecord, TrialResult


def healthy(k: int = 8, loss: float = -500.0) -> TrialResult:
    """A trial of two converged stages of ten windows, whose clusters have equal sizes and no common rivals."""
    losses = [loss + 200 / (index + 1) for index in range(20)]
    history = [HistoryPoint(60 * (i + 1), value, 1e-3, 1, 0, 0.2, 0.1) for i, value in enumerate(losses)]
    stages = [StageRecord(["color"], 600, "converged"), StageRecord(["color", "projective"], 600, "converged")]
    clusters = [ClusterRecord(50, (index + 1) % k, 0.9) for index in range(k)]
    return TrialResult(k, 0, loss, 1200, 76800, 60.0, 1, stages, history, clusters)


def names(kept: TrialResult, *others: TrialResult) -> list[str]:
    return [symptom.name for symptom in symptoms_of(kept, [kept, *others])]


def with_sizes(*sizes: int) -> TrialResult:
    clusters = [ClusterRecord(size, 0 if index else 1, 0.5) for index, size in enumerate(sizes)]
    return replace(healthy(len(sizes)), clusters=clusters)


def test_a_healthy_trial_has_no_symptoms() -> None:
    assert symptoms_of(healthy(), [healthy(4, -400.0), healthy(), healthy(16, -600.0)]) == []
    assert symptoms_of(replace(healthy(1), clusters=[ClusterRecord(9, None, 0.0)]), [healthy(1)]) == []


def test_a_cluster_has_swallowed_the_rest_if_it_holds_far_more_than_its_part() -> None:
    assert names(with_sizes(74, 26)) == []
    assert names(with_sizes(76, 24)) == ["swallowed"]
    assert names(with_sizes(*[54] + [46 // 9] * 9)) == []
    (symptom,) = symptoms_of(with_sizes(5, 60, *[5] * 7), [])
    assert (symptom.name, symptom.clusters) == ("swallowed", (1,))
    assert "#1 holds 60% of all images" in symptom.text


def test_a_larger_k_that_ends_with_a_higher_loss_is_a_symptom() -> None:
    (symptom,) = symptoms_of(healthy(8), [healthy(8, -500.0), healthy(16, -450.0), healthy(32, -600.0)])
    assert symptom.name == "worse-than-smaller-k"
    assert "K = 16 ended with a higher loss (-450) than K = 8 (-500)" in symptom.text
    # Another seed of the same K may have found the better solution.
    assert names(healthy(8), healthy(16, -450.0), replace(healthy(16, -550.0), seed=1)) == []


def test_a_stage_was_cut_short_if_the_loss_still_fell_at_its_bound() -> None:
    trial = healthy()
    ended = [trial.stages[0], replace(trial.stages[1], reason="max_iterations")]
    assert names(replace(trial, stages=ended)) == []  # the loss had stopped falling
    falling = [replace(point, loss=-10.0 * index) for index, point in enumerate(trial.history)]
    (symptom,) = symptoms_of(replace(trial, stages=ended, history=falling), [])
    assert symptom.name == "cut-short"
    assert "stage 2 (color+projective, 600 iterations) ended at its bound" in symptom.text
    assert symptom.text.endswith("raise clustering.schedule.max_iterations")
    slow = [replace(point, learning_rate=1e-4 if index >= 10 else 1e-3) for index, point in enumerate(falling)]
    (symptom,) = symptoms_of(replace(trial, stages=ended, history=slow), [])
    assert symptom.text.endswith("raise clustering.schedule.final_iterations")
    both = [replace(stage, reason="max_iterations") for stage in trial.stages]
    (symptom,) = symptoms_of(replace(trial, stages=both, history=slow), [])
    assert "stages 1 (color, 600 iterations), 2 (color+projective, 600 iterations) ended" in symptom.text
    assert symptom.text.endswith("raise clustering.schedule.max_iterations and clustering.schedule.final_iterations")
    assert names(replace(trial, history=falling)) == []  # the rule of convergence ended it
    short = [replace(trial.stages[0], iterations=1140), replace(ended[1], iterations=60)]
    assert names(replace(trial, stages=short, history=falling)) == []  # one window has no fall


def test_clusters_that_are_each_others_runner_ups_are_alike() -> None:
    def with_rivals(*rivals: tuple[int, float]) -> TrialResult:
        return replace(healthy(len(rivals)), clusters=[ClusterRecord(50, rival, share) for rival, share in rivals])

    apart = [(3, 0.9), (3, 0.9), (0, 0.9)]
    (symptom,) = symptoms_of(with_rivals(*apart, (4, 0.7), (3, 0.8)), [])
    assert (symptom.name, symptom.clusters) == ("alike", (3, 4))
    assert "#3 and #4" in symptom.text
    assert names(with_rivals(*apart, (4, 0.6), (3, 0.9))) == []
    assert names(with_rivals((1, 1.0), (0, 1.0))) == []  # with two clusters, there is no other runner-up
    many = with_rivals(*((index ^ 1, 1.0) for index in range(20)))
    (symptom,) = symptoms_of(many, [])
    assert "10 pairs" in symptom.text
    assert symptom.text.endswith("#14 and #15, …")
