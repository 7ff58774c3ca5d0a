from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import Markup

from pipeline.clustering.trial import TrialResult
from pipeline.reporting.page.charts import Line, bars, line_chart, number
from pipeline.reporting.page.training import training_figures
from tests.support.made_page import made_trial


def elements(chart: Markup, tag: str) -> list[ET.Element]:
    return list(ET.fromstring(chart).iter(tag))


def curve(chart: Markup) -> list[tuple[float, float]]:
    (line,) = [path for path in elements(chart, "path") if "line" in path.get("class", "")]
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", line.get("d", ""))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_heights_of_bars_are_proportional_to_their_counts() -> None:
    chart = bars([1, 0, 4, 2], "counts", ("low", "high"), ["a", "b", "c", "d"])
    heights = [float(rect.get("height", 0)) for rect in elements(chart, "rect")]
    assert heights[1] == 2 * heights[2] == 4 * heights[0]
    assert [title.text for title in elements(chart, "title")] == ["a: 1", "c: 4", "d: 2"]


def test_bars_without_names_are_the_same_bars() -> None:
    (path,) = [p for p in elements(bars([1, 0, 4, 2], "", ("", "")), "path") if p.get("class") == "bar"]
    heights = [float(height) for height in re.findall(r"v([\d.]+)h", path.get("d", ""))]
    assert heights[1] == 2 * heights[2] == 4 * heights[0]


def test_a_curve_is_drawn_to_scale() -> None:
    points = curve(line_chart([Line("a", [0, 1, 2], [10, 30, 20])], "", "x"))
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(2 * (y2 - y1), abs=0.2)


def test_values_that_are_not_finite_are_left_out() -> None:
    assert len(curve(line_chart([Line("a", [0, 1, 2], [1, math.nan, 2])], "", "x"))) == 2
    assert line_chart([Line("a", [0.0], [math.inf])], "", "x") == ""


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20), st.booleans())
@example([0.0, 5e-324], False)
def test_a_chart_of_any_values_stays_inside_its_frame(values: list[float], from_zero: bool) -> None:
    chart = line_chart([Line("a", [float(i) for i in range(len(values))], values)], "", "x", from_zero=from_zero)
    assert all(0 <= x <= 640 and 0 <= y <= 256 for x, y in curve(chart))
    names = [text.text for text in elements(chart, "text")]
    assert len(names) <= 16


def test_names_are_escaped() -> None:
    chart = line_chart([Line("<b>", [0, 1], [0, 1])], 'say "hi"', "<x>", [(0.5, "&")])
    assert ET.fromstring(chart).get("aria-label") == 'say "hi"'
    assert {"<b>", "&"} <= {title.text for title in elements(chart, "title")}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (-5185.4, "−5,185"),
        (0.03512, "0.0351"),
        (12.0, "12"),
        (1e-9, "1e-09"),
        (-0.5, "−0.5"),
        (math.nan, "–"),
    ],
)
def test_numbers_are_formatted_for_readers(value: float, expected: str) -> None:
    assert number(value) == expected


def titles(results: list[TrialResult], selected: TrialResult) -> list[str]:
    return [figure.title for figure in training_figures(results, selected)]


def test_training_is_shown_in_four_charts() -> None:
    results = [made_trial(k, seed) for k in (4, 8) for seed in (0, 1)]
    assert len(titles(results, results[2])) == 4
    by_k = training_figures(results, results[2])[0]
    assert "K = 8 was kept" in by_k.caption
    assert len(elements(by_k.chart, "circle")) == 5  # four trials, and the kept one again


def test_one_k_has_no_curve_over_k() -> None:
    result = made_trial(4)
    assert "Loss against K" not in titles([result], result)


def test_many_long_trials_are_thinned_out() -> None:
    results = [made_trial(4, seed, windows=3000) for seed in range(40)]
    figures = training_figures(results, results[0])
    assert "The chart shows 24 of 40 trials" in figures[0].caption
    assert sum(len(figure.chart) for figure in figures) < 300_000
