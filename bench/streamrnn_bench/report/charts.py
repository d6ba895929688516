"""Charts as SVG text: lines over logarithmic axes, and stacked bars.

Colours are classes of the page's style sheet (``s0`` to ``s7``), so that it follows the reader's
light or dark theme. Beyond eight they come again, dashed (``again``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

__all__ = ["NUM_COLORS", "Points", "bar_chart", "line_chart"]

NUM_COLORS = 8
Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 760, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 16, 30, 48
_BAR, _GAP = 26, 40
_MIN_LABEL_WIDTH = 34


def line_chart(
    series: Mapping[str, Points],
    x_label: str,
    y_label: str,
    x_ticks: Sequence[tuple[float, str]] = (),
) -> str:
    """Draw points, joined in the order of x, with logarithmic axes.

    All numbers are above 0. Without ``x_ticks`` (a place and its text) they are powers of ten.
    """
    xs = [x for points in series.values() for x, _ in points] + [x for x, _ in x_ticks]
    ys = [y for points in series.values() for _, y in points]
    across, up = _Axis(xs, _LEFT, _WIDTH - _RIGHT), _Axis(ys, _HEIGHT - _BOTTOM, _TOP)
    parts = [_svg(_HEIGHT, f"{y_label} over {x_label}")]
    for y in up.ticks():
        at = up(y)
        parts.append(_line(_LEFT, at, _WIDTH - _RIGHT, at, "grid"))
        parts.append(_text(_LEFT - 8, at + 4, _tick(y), "end"))
    for x, label in x_ticks or [(x, _tick(x)) for x in across.ticks()]:
        at = across(x)
        parts.append(_line(at, _TOP, at, _HEIGHT - _BOTTOM, "grid"))
        parts.append(_text(at, _HEIGHT - _BOTTOM + 18, label, "middle"))
    parts.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 8, x_label, "middle"))
    parts.append(_text(0, 14, y_label, "start", "unit"))
    for k, (name, points) in enumerate(series.items()):
        places = [(across(x), up(y)) for x, y in sorted(points)]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<g class="{_color(k)}"><polyline points="{drawn}"/>')
        for (x, y), (at_x, at_y) in zip(sorted(points), places, strict=True):
            title = escape(f"{name}: {_tick(y)} at {_tick(x)}")
            parts.append(
                f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="3.5"><title>{title}</title></circle>'
            )
        parts.append("</g>")
    return "".join([*parts, "</svg>", _legend(list(series))])


def bar_chart(bars: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """Draw a bar for each name, stacked of named parts; the same part has the same colour."""
    names = list(dict.fromkeys(part for parts in bars.values() for part in parts))
    longest = max(sum(parts.values()) for parts in bars.values())
    height = _GAP * len(bars) * 2
    drawn = [_svg(height, f"parts in {unit}")]
    for k, (name, parts) in enumerate(bars.items()):
        top = 2 * _GAP * k
        total = sum(parts.values())
        drawn.append(_text(0, top + 18, f"{name}: {_tick(total)} {unit}", "start"))
        at = 0.0
        for part, value in parts.items():
            width = (_WIDTH - _RIGHT) * value / longest
            title = escape(f"{part}: {_tick(value)} {unit} ({value / total:.0%})")
            drawn.append(
                f'<g class="{_color(names.index(part))}"><rect x="{at:.1f}" y="{top + 26}" '
                f'width="{width:.1f}" height="{_BAR}"><title>{title}</title></rect></g>'
            )
            if width >= _MIN_LABEL_WIDTH:
                drawn.append(_text(at + width / 2, top + 44, _tick(value), "middle", "inside"))
            at += width
    return "".join([*drawn, "</svg>", _legend(names)])


class _Axis:
    """Logarithmic scale from the least to the greatest value, onto pixels."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        self._low, self._high = math.log10(min(values)), math.log10(max(values))
        margin = max((self._high - self._low) * 0.04, 0.05)
        self._low, self._high = self._low - margin, self._high + margin
        self._first, self._last = first, last

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._first + share * (self._last - self._first)

    def ticks(self) -> list[float]:
        """Return 1, 2, 5, 10, ... or powers of ten alone, whichever is not too many."""
        decades = range(math.floor(self._low), math.ceil(self._high) + 1)
        for leads in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,)):
            ticks = [lead * 10.0**k for k in decades for lead in leads]
            shown = [t for t in ticks if self._low <= math.log10(t) <= self._high]
            places = [abs(self(t) - self(s)) for s, t in pairwise(shown)]
            if min(places, default=_HEIGHT) >= 26:
                return shown
        return shown


def _tick(value: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def _color(k: int) -> str:
    return f"s{k % NUM_COLORS}" + " again" * (k >= NUM_COLORS)


def _svg(height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{escape(title)}</title>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'
    )


def _legend(names: Sequence[str]) -> str:
    items = (
        f'<span class="{_color(k)}"><i></i>{escape(name)}</span>' for k, name in enumerate(names)
    )
    return f'<p class="legend">{"".join(items)}</p>'
