"""How the prototypes were learned, in charts: loss against K, and every trial over its iterations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

from markupsafe import Markup

from pipeline.clustering.trial import TrialResult, best_of_each_k
from pipeline.reporting.page.charts import Line, line_chart, number

Point = TypeVar("Point")

ITERATIONS = "iterations"
MOST_TICKS = 10
MOST_POINTS = 300
"""Of one curve; the eye does not see more."""
MOST_TRIALS = 24
"""Curves of one chart, those with the lowest loss."""


@dataclass(frozen=True)
class Figure:
    """A chart and what is written below it."""

    title: str
    caption: str
    chart: Markup


def training_figures(results: Sequence[TrialResult], selected: TrialResult) -> list[Figure]:
    """The charts of a run's trials; those that would be empty are left out."""
    stages = [
        (float(end), f"after {' + '.join(stage.modules) or 'no transformation'}: {stage.reason}")
        for end, stage in zip(accumulate(s.iterations for s in selected.stages), selected.stages, strict=True)
    ]
    own = _thinned(selected.history)
    iterations = [float(point.iteration) for point in own]
    total = sum(point.reassigned for point in selected.history)
    # Counted up before it is thinned out.
    reassigned = [float(n) for n in _thinned(list(accumulate(point.reassigned for point in selected.history)))]
    shares = [
        Line("largest share", iterations, [point.largest_share for point in own], "main", named=True),
        Line("smallest share", iterations, [point.smallest_share for point in own], "pale", named=True),
    ]
    figures = [
        _loss_by_k(results, selected),
        _losses(results, selected, stages),
        Figure(
            "Shares of the largest and the smallest cluster",
            "Of the kept trial; dashed lines are the ends of its stages.",
            line_chart(shares, "Largest and smallest share of a cluster", ITERATIONS, stages, from_zero=True),
        ),
        Figure(
            "Reassigned prototypes",
            f"{total:,} in the kept trial, counted up: prototypes that had next to no images and started again from"
            " the largest cluster.",
            line_chart(
                [Line("reassigned", iterations, reassigned, "main")],
                f"{total} reassignments",
                ITERATIONS,
                stages,
                from_zero=True,
            ),
        ),
    ]
    return [figure for figure in figures if figure.chart]


def _loss_by_k(results: Sequence[TrialResult], selected: TrialResult) -> Figure:
    best = best_of_each_k(results)
    if len(best) < 2:
        return Figure("", "", Markup(""))
    lines = [
        Line("lowest loss", [float(r.k) for r in best], [r.loss for r in best], "pale"),
        *(Line(f"seed {r.seed}", [float(r.k)], [r.loss], "pale") for r in results if r not in best),
        Line("kept", [float(selected.k)], [selected.loss], "main"),
    ]
    description = f"Loss against K; K = {selected.k} was kept, with loss {number(round(selected.loss, 4))}"
    caption = f"Each dot is a trial, the line joins the best of each K, and K = {selected.k} was kept."
    return Figure(
        "Loss against K",
        caption,
        line_chart(
            lines, description, "K", points=True, ticks=[float(r.k) for r in best][:: -(-len(best) // MOST_TICKS)]
        ),
    )


def _losses(results: Sequence[TrialResult], selected: TrialResult, stages: Sequence[tuple[float, str]]) -> Figure:
    shown = sorted(results, key=lambda r: (r is selected, -r.loss))[-MOST_TRIALS:]
    lines = []
    for r in shown:
        points = _thinned(r.history)
        iterations, losses = [float(point.iteration) for point in points], [point.loss for point in points]
        lines.append(Line(r.trial.name, iterations, losses, "main" if r is selected else "pale"))
    caption = f"The kept trial, {selected.trial.name}, stands out; dashed lines are the ends of its stages."
    if len(shown) < len(results):
        caption += f" Shown are {len(shown)} of {len(results)} trials, those with the lowest loss."
    description = (
        f"Loss of {len(shown)} trials over their iterations; that of the kept one ends at {number(selected.loss)}"
    )
    return Figure("Loss while training", caption, line_chart(lines, description, ITERATIONS, stages))


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS` of `points`, evenly, the last one included."""
    step = -(-len(points) // MOST_POINTS) if points else 1
    return list(points[::-1][::step])[::-1]
