"""Charts of the training: loss against K, and the course of each trial over its iterations."""

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
MAX_TICKS = 10
"""Maximum number of labelled values of K on an axis."""
MAX_POINTS = 300
"""Maximum number of points of a curve; more would not be visible."""
MAX_TRIALS = 24
"""Maximum number of curves of a chart, which are those with the lowest loss."""


@dataclass(frozen=True)
class Figure:
    """A chart with its title and caption."""

    title: str
    caption: str
    chart: Markup


def training_figures(results: Sequence[TrialResult], selected: TrialResult) -> list[Figure]:
    """Return the charts of the trials of a run, without empty ones."""
    stages = [
        (float(end), f"after {' + '.join(stage.modules) or 'no transformation'}: {stage.reason}")
        for end, stage in zip(accumulate(s.iterations for s in selected.stages), selected.stages, strict=True)
    ]
    history = _thinned(selected.history)
    iterations = [float(point.iteration) for point in history]
    total = sum(point.reassigned for point in selected.history)
    # Accumulate before thinning out, so that no reassignment is lost.
    reassigned = [float(n) for n in _thinned(list(accumulate(point.reassigned for point in selected.history)))]
    shares = [
        Line("largest share", iterations, [point.largest_share for point in history], "main", labelled=True),
        Line("smallest share", iterations, [point.smallest_share for point in history], "pale", labelled=True),
    ]
    figures = [
        _loss_by_k(results, selected),
        _losses(results, selected, stages),
        Figure(
            "Shares of the largest and the smallest cluster",
            "Shares of the images in the kept trial. Dashed lines mark the ends of its training stages.",
            line_chart(
                shares,
                "Share of the largest and the smallest cluster over the iterations of the kept trial",
                ITERATIONS,
                stages,
                from_zero=True,
            ),
        ),
        Figure(
            "Reassigned prototypes",
            f"Cumulative number in the kept trial, {total:,} in total. A prototype that is hardly needed, because"
            " another one explains its images nearly as well, starts again as one half of a cluster that is worth"
            " splitting.",
            line_chart(
                [Line("reassigned", iterations, reassigned, "main")],
                f"Cumulative number of reassigned prototypes, {total} in total",
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
    caption = f"Each dot is a trial. The line connects the best trial of each K; K = {selected.k} was kept."
    return Figure(
        "Loss against K",
        caption,
        line_chart(
            lines, description, "K", points=True, ticks=[float(r.k) for r in best][:: -(-len(best) // MAX_TICKS)]
        ),
    )


def _losses(results: Sequence[TrialResult], selected: TrialResult, stages: Sequence[tuple[float, str]]) -> Figure:
    drawn = sorted(results, key=lambda r: (r is selected, -r.loss))[-MAX_TRIALS:]
    lines = []
    for r in drawn:
        points = _thinned(r.history)
        iterations, losses = [float(point.iteration) for point in points], [point.loss for point in points]
        lines.append(Line(r.trial.name, iterations, losses, "main" if r is selected else "pale"))
    caption = (
        f"The kept trial is {selected.trial.name} (highlighted). Dashed lines mark the ends of its training stages."
    )
    if len(drawn) < len(results):
        caption += f" The chart shows {len(drawn)} of {len(results)} trials, those with the lowest loss."
    description = f"Loss of {len(drawn)} trials over their iterations; the kept trial ends at {number(selected.loss)}"
    return Figure("Loss during training", caption, line_chart(lines, description, ITERATIONS, stages))


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most `MAX_POINTS` of `points` at equal distances, including the last one."""
    step = -(-len(points) // MAX_POINTS) if points else 1
    return list(points[::-1][::step])[::-1]
