"""The health of training: what its results say about whether it worked, without labels and without looking at images.

A symptom is a reason to look twice at a run. Its text says what to change, if anything. Whether any cluster is a clear
view depends on photos, so `pipeline.reporting` adds this symptom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pipeline.clustering.trial import TrialResult, best_of_each_k

FALLING = 0.05
"""A stage was cut short if its last two windows lowered the loss by more than this part of the fall of the whole
training, each on average."""
NOTICEABLE = 1e-3
"""Relative difference above which a loss is noticeably higher than another one."""
RIVAL_SHARE = 2 / 3
"""Two clusters are alike if each is the runner-up of at least this part of the images of the other."""
SMALLEST_K = 5
"""Below this K, any two clusters are likely to be each other's runner-ups."""
SHOWN_PAIRS = 8
"""Maximum number of pairs of clusters that are alike in the text of a symptom."""

SymptomName = Literal["cut-short", "alike", "swallowed", "worse-than-smaller-k", "no-clear-view"]


@dataclass(frozen=True)
class Symptom:
    """Something about a run that its user should know."""

    name: SymptomName
    text: str
    """A sentence for the user, without a full stop; a cluster is named by its index, such as #7."""
    clusters: tuple[int, ...] = ()
    """Indices of the clusters that it is about, if any."""


def symptoms_of(kept: TrialResult, results: Sequence[TrialResult]) -> list[Symptom]:
    """Return what is wrong with the kept trial of a run, the most serious first.

    Args:
        kept: the trial that is reported.
        results: all trials of the run.
    """
    return [*_swallowed(kept), *_worse_than_smaller_k(kept, results), *_cut_short(kept), *_alike(kept)]


def _swallowed(kept: TrialResult) -> list[Symptom]:
    """A cluster that holds far more than its part: with K = 2 more than 3/4 of the images, with a large K over half."""
    total = sum(cluster.images for cluster in kept.clusters)
    largest = max(range(kept.k), key=lambda index: kept.clusters[index].images)
    share = kept.clusters[largest].images / total
    if kept.k == 1 or share <= 0.5 * (1 + 1 / kept.k):
        return []
    return [Symptom("swallowed", f"#{largest} holds {share:.0%} of all images; try other --seeds", (largest,))]


def _worse_than_smaller_k(kept: TrialResult, results: Sequence[TrialResult]) -> list[Symptom]:
    """Trials with a higher loss than one with fewer prototypes, which can explain less."""
    best = best_of_each_k(results)
    worse = [
        f"K = {larger.k} ended with a higher loss ({larger.loss:.6g}) than K = {smaller.k} ({smaller.loss:.6g})"
        for smaller, larger in pairwise(best)
        if larger.loss - smaller.loss > NOTICEABLE * abs(smaller.loss)
    ]
    advice = "its training found a poor solution; try more --seeds"
    return [Symptom("worse-than-smaller-k", f"{text}: {advice}") for text in worse]


def _cut_short(kept: TrialResult) -> list[Symptom]:
    """Stages that ended at their bound while the loss still fell."""
    whole = kept.history[0].loss - kept.history[-1].loss if kept.history else 0.0
    stages, bounds, begin = [], set(), 0
    for number, stage in enumerate(kept.stages, start=1):
        end = begin + stage.iterations
        windows = [point for point in kept.history if begin < point.iteration <= end][-3:]
        begin = end
        if stage.reason != "max_iterations" or len(windows) < 2:
            continue
        fall = (windows[0].loss - windows[-1].loss) / (len(windows) - 1)
        if whole > 0 and fall > FALLING * whole:
            stages.append(f"{number} ({'+'.join(stage.modules) or 'prototypes'}, {stage.iterations} iterations)")
            final = windows[-1].learning_rate < kept.history[0].learning_rate
            bounds.add("final_iterations" if final else "max_iterations")
    if not stages:
        return []
    which = (
        f"stage {stages[0]} ended at its bound"
        if len(stages) == 1
        else f"stages {', '.join(stages)} ended at their bounds"
    )
    raised = " and ".join(f"clustering.schedule.{bound}" for bound in sorted(bounds, reverse=True))
    return [Symptom("cut-short", f"{which} while the loss still fell; to train longer, raise {raised}")]


def _alike(kept: TrialResult) -> list[Symptom]:
    """Pairs of clusters that explain each other's images second best: often one view, found twice."""
    if kept.k < SMALLEST_K:
        return []
    rivals = {
        index: cluster.rival
        for index, cluster in enumerate(kept.clusters)
        if cluster.rival is not None and cluster.rival_share >= RIVAL_SHARE
    }
    pairs = [(a, b) for a, b in rivals.items() if a < b and rivals.get(b) == a]
    if not pairs:
        return []
    names = ", ".join(f"#{a} and #{b}" for a, b in pairs[:SHOWN_PAIRS]) + ", …" * (len(pairs) > SHOWN_PAIRS)
    number = "two clusters are" if len(pairs) == 1 else f"{len(pairs)} pairs of clusters are"
    text = f"{number} each other's runner-up for most images, and may show the same view: {names}"
    return [Symptom("alike", text, tuple(index for pair in pairs for index in pair))]
