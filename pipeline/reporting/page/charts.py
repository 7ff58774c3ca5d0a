"""Charts as SVG that stands in the page: no script, no style but the page's classes, a sentence for screen readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 640, 256
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 10, 42
"""Room for what is written at the axes."""


@dataclass(frozen=True)
class Line:
    """One curve of `line_chart`."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    css: str = ""
    """Classes of the page's style sheet, such as ``main`` or ``pale``."""
    named: bool = False
    """Whether its name is written at its end."""


def bars(counts: Sequence[int], description: str, labels: tuple[str, str], names: Sequence[str] = ()) -> Markup:
    """A small histogram.

    Args:
        counts: height of each bar.
        description: the chart in a sentence.
        labels: what is written below the first and the last bar.
        names: what each bar is, shown with its count when a pointer rests on it; a chart without them is smaller.
    """
    width, height, floor = 320, 84, 66
    step, most = width / max(1, len(counts)), max([1, *counts])
    boxes = [
        (index, index * step, floor - top, max(0.5, step - 1), top)
        for index, top in enumerate(max(1.5, (floor - 4) * count / most) if count else 0 for count in counts)
        if top
    ]
    if names:
        rect = Markup('<rect x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"><title>{}: {:,}</title></rect>')
        parts = [rect.format(*box, names[index], counts[index]) for index, *box in boxes]
    else:
        path = "".join(f"M{x:.4g} {y:.3g}v{top:.3g}h{wide:.3g}v-{top:.3g}z" for _, x, y, wide, top in boxes)
        parts = [Markup('<path class="bar" d="{}"/>').format(path)]
    parts.append(Markup('<path class="axis" d="M0 {0}.5H{1}"/>').format(floor, width))
    parts.append(Markup('<text x="0" y="{}">{}</text>').format(height - 4, labels[0]))
    parts.append(Markup('<text x="{}" y="{}" class="end">{}</text>').format(width, height - 4, labels[1]))
    return _svg("bars", width, height, description, parts)


def line_chart(
    lines: Sequence[Line],
    description: str,
    across: str,
    marks: Sequence[tuple[float, str]] = (),
    points: bool = False,
    from_zero: bool = False,
    ticks: Sequence[float] | None = None,
) -> Markup:
    """Curves over a common axis.

    Args:
        lines: at least one point in all of them together; values that are not finite are left out.
        description: the chart in a sentence.
        across: what the horizontal axis is.
        marks: vertical lines, each at an x and with a name.
        points: whether to draw a dot at each value, too.
        from_zero: whether the vertical axis begins at zero.
        ticks: values to name on the horizontal axis; round ones by default.
    """
    curves = [(line, [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]) for line in lines]
    values = [point for _, curve in curves for point in curve]
    if not values:
        return Markup("")
    x_low, x_high = _range([x for x, _ in values])
    y_low, y_high = _range([y for _, y in values] + [0.0] * from_zero)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value, name in _ticks(y_low, y_high):
        _, y = place(x_low, value)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
        parts.append(Markup('<text class="end" x="{}" y="{:.1f}">{}</text>').format(LEFT - 8, y + 4, name))
    for value, name in _ticks(x_low, x_high) if ticks is None else [(value, number(value)) for value in ticks]:
        x, _ = place(value, y_low)
        parts.append(Markup('<text class="middle" x="{:.1f}" y="{}">{}</text>').format(x, HEIGHT - 22, name))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(Markup('<text class="middle" x="{}" y="{}">{}</text>').format(middle, HEIGHT - 4, across))
    for value, name in marks:
        x, _ = place(value, y_low)
        path = '<path class="mark" d="M{:.1f} {}V{}"><title>{}</title></path>'
        parts.append(Markup(path).format(x, TOP, HEIGHT - BOTTOM, name))
    for line, curve in curves:
        spots = [place(x, y) for x, y in curve]
        path = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(spots))
        parts.append(Markup('<path class="line {}" d="{}"><title>{}</title></path>').format(line.css, path, line.name))
        if line.named and spots:
            x, y = spots[-1]
            below = y + 16 if y < HEIGHT / 2 else y - 8
            parts.append(Markup('<text class="end" x="{:.1f}" y="{:.1f}">{}</text>').format(x - 6, below, line.name))
        for (x, y), (at, value) in zip(spots if points else (), curve, strict=False):
            name = f"{line.name}: {number(value)} at {number(at)}"
            dot = '<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>'
            parts.append(Markup(dot).format(line.css, x, y, name))
    return _svg("chart", WIDTH, HEIGHT, description, parts)


def number(value: float) -> str:
    """`value` as people write it: 1,234 or −0.035; a dash where it is not finite."""
    if not math.isfinite(value):
        return "–"
    shown = f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
    return shown.replace("-", "−") if "e" not in shown else shown


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Two to six round numbers between `low` and `high`, each with its name."""
    magnitude = math.floor(math.log10((high - low) / 5))
    step = next(s for s in (factor * 10**magnitude for factor in (1, 2, 5, 10)) if (high - low) / s <= 5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(i * step, f"{i * step:,.{decimals}f}".replace("-", "−")) for i in range(first, last + 1)]


def _svg(css: str, width: int, height: int, description: str, parts: Sequence[Markup]) -> Markup:
    opening = '<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">'
    return Markup(opening).format(css, width, height, description) + Markup("").join(parts) + Markup("</svg>")
