"""Charts as inline SVG: without scripts, styled by the page's classes, and described for screen readers."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 640, 256
"""Size of a line chart in units of its view box."""
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 10, 42
"""Margins of a line chart, which contain the labels of the axes."""


@dataclass(frozen=True)
class Line:
    """One curve of `line_chart`."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    css: str = ""
    """CSS classes of the page's style sheet, such as ``main`` or ``pale``."""
    labelled: bool = False
    """Whether the name of the curve is written at its end."""


def bars(counts: Sequence[int], description: str, labels: tuple[str, str], names: Sequence[str] = ()) -> Markup:
    """Return a small histogram.

    Args:
        counts: height of each bar.
        description: description of the chart, for screen readers.
        labels: labels below the first and the last bar.
        names: name of each bar, shown with its count as a tooltip. Without names, the SVG is smaller.
    """
    width, height, baseline = 320, 84, 66
    step, highest = width / max(1, len(counts)), max([1, *counts])
    boxes = [
        (index, index * step, baseline - bar, max(0.5, step - 1), bar)
        for index, bar in enumerate(max(1.5, (baseline - 4) * count / highest) if count else 0 for count in counts)
        if bar
    ]
    if names:
        rect = Markup('<rect x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"><title>{}: {:,}</title></rect>')
        parts = [rect.format(*box, names[index], counts[index]) for index, *box in boxes]
    else:
        path = "".join(f"M{x:.4g} {y:.3g}v{bar:.3g}h{bar_width:.3g}v-{bar:.3g}z" for _, x, y, bar_width, bar in boxes)
        parts = [Markup('<path class="bar" d="{}"/>').format(path)]
    parts.append(Markup('<path class="axis" d="M0 {0}.5H{1}"/>').format(baseline, width))
    parts.append(Markup('<text x="0" y="{}">{}</text>').format(height - 4, labels[0]))
    parts.append(Markup('<text x="{}" y="{}" class="end">{}</text>').format(width, height - 4, labels[1]))
    return _svg("bars", width, height, description, parts)


def line_chart(
    lines: Sequence[Line],
    description: str,
    x_label: str,
    marks: Sequence[tuple[float, str]] = (),
    points: bool = False,
    from_zero: bool = False,
    ticks: Sequence[float] | None = None,
) -> Markup:
    """Return a line chart of curves with common axes; empty if there is no finite value.

    Args:
        lines: curves to draw, without values that are not finite.
        description: description of the chart, for screen readers.
        x_label: label of the horizontal axis.
        marks: vertical lines, each as its x value and its name.
        points: whether to draw a dot at each value as well.
        from_zero: whether the vertical axis starts at zero.
        ticks: labelled values of the horizontal axis. Default: round numbers.
    """
    curves = [(line, [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]) for line in lines]
    values = [point for _, curve in curves for point in curve]
    if not values:
        return Markup("")
    x_low, x_high = _range([x for x, _ in values])
    y_low, y_high = _range([y for _, y in values] + [0.0] * from_zero)

    def position(x: float, y: float) -> tuple[float, float]:
        """Return the coordinates of a point in the view box."""
        horizontal = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return horizontal, TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value, name in _ticks(y_low, y_high):
        _, y = position(x_low, value)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
        parts.append(Markup('<text class="end" x="{}" y="{:.1f}">{}</text>').format(LEFT - 8, y + 4, name))
    for value, name in _ticks(x_low, x_high) if ticks is None else [(value, number(value)) for value in ticks]:
        x, _ = position(value, y_low)
        parts.append(Markup('<text class="middle" x="{:.1f}" y="{}">{}</text>').format(x, HEIGHT - 22, name))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(Markup('<text class="middle" x="{}" y="{}">{}</text>').format(middle, HEIGHT - 4, x_label))
    for value, name in marks:
        x, _ = position(value, y_low)
        path = '<path class="mark" d="M{:.1f} {}V{}"><title>{}</title></path>'
        parts.append(Markup(path).format(x, TOP, HEIGHT - BOTTOM, name))
    for line, curve in curves:
        dots = [position(x, y) for x, y in curve]
        path = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(dots))
        parts.append(Markup('<path class="line {}" d="{}"><title>{}</title></path>').format(line.css, path, line.name))
        if line.labelled and dots:
            x, y = dots[-1]
            label_y = y + 16 if y < HEIGHT / 2 else y - 8
            parts.append(Markup('<text class="end" x="{:.1f}" y="{:.1f}">{}</text>').format(x - 6, label_y, line.name))
        for (x, y), (at, value) in zip(dots if points else (), curve, strict=False):
            name = f"{line.name}: {number(value)} at {number(at)}"
            dot = '<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>'
            parts.append(Markup(dot).format(line.css, x, y, name))
    return _svg("chart", WIDTH, HEIGHT, description, parts)


def number(value: float) -> str:
    """Return `value` as text, such as "1,234" or "−0.035"; a dash if it is not finite."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
    return text.replace("-", "−") if "e" not in text else text


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    # Below the smallest normal float, a fifth of the range may be 0, which has no logarithm.
    return (low, high) if high - low > sys.float_info.min else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return two to six round numbers between `low` and `high`, each with its label."""
    magnitude = math.floor(math.log10((high - low) / 5))
    step = next(s for s in (factor * 10**magnitude for factor in (1, 2, 5, 10)) if (high - low) / s <= 5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(i * step, f"{i * step:,.{decimals}f}".replace("-", "−")) for i in range(first, last + 1)]


def _svg(css: str, width: int, height: int, description: str, parts: Sequence[Markup]) -> Markup:
    opening = '<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">'
    return Markup(opening).format(css, width, height, description) + Markup("").join(parts) + Markup("</svg>")
