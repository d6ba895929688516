"""Gates and state of one unit over a stream, as text for a terminal and as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import TrainingError
from streamrnn.model.tensor_file import replace_file
from streamrnn.reference.gates import LayerGates

__all__ = ["GATE_NAMES", "Trace", "plot_curves", "trace_of", "trace_text", "write_trace"]

Array = NDArray[np.float64]

GATE_NAMES: Mapping[str, str] = {
    "f": "forget gate",
    "i": "input gate",
    "o": "output gate",
    "z": "update gate",
    "r": "reset gate",
}
STATE_NAMES = {"c": "cell state", "h": "output"}
MAX_TICKS = 8


@dataclass(frozen=True)
class Trace:
    """One unit over T steps."""

    title: str
    gates: dict[str, Array]  # name -> [T], the one that keeps the state first
    state: Array  # [T]
    state_name: str
    first: int = 0  # number of the first step
    labels: tuple[str, ...] = ()  # of every step, where it has one


def trace_of(
    found: LayerGates, unit: int, steps: slice, title: str, labels: tuple[str, ...] = ()
) -> Trace:
    """Cut one unit's gates and state out of those of a layer, of its first stream."""
    order = [name for name in GATE_NAMES if name in found.gates]
    state = "c" if "c" in found.states else "h"
    return Trace(
        title,
        {GATE_NAMES[name]: found.gates[name][0, steps, unit] for name in order},
        found.states[state][0, steps, unit],
        STATE_NAMES[state],
        steps.start or 0,
        labels,
    )


def trace_text(trace: Trace, width: int = 88) -> str:
    """Draw the gate that keeps the state, the input gate and the state.

    Raises `TrainingError` if plotext is not installed.
    """
    shown = [(name, trace.gates[name]) for name in list(trace.gates)[:2]]
    parts = [_plot(trace, shown, width, 12, (0.0, 1.0))] if shown else []
    parts.append(_plot(trace, [(trace.state_name, trace.state)], width, 9, None))
    return "\n".join([trace.title, *parts])


def _plot(
    trace: Trace,
    curves: list[tuple[str, Array]],
    width: int,
    height: int,
    limits: tuple[float, float] | None,
) -> str:
    steps = list(range(trace.first, trace.first + len(trace.state)))
    places = sorted({round(k) for k in np.linspace(steps[0], steps[-1], MAX_TICKS)})
    labels = [trace.labels[k - trace.first] for k in places] if trace.labels else None
    title = curves[0][0] if len(curves) == 1 else ""
    drawn = {name: (steps, values.tolist()) for name, values in curves}
    return "\n".join(plot_curves(title, drawn, width, height, limits, (places, labels)))


def plot_curves(
    title: str,
    curves: dict[str, tuple[list[int], list[float]]],
    width: int,
    height: int,
    limits: tuple[float, float] | None = None,
    ticks: tuple[list[int], list[str] | None] | None = None,
) -> list[str]:
    """Draw one curve, or two, as lines of text.

    Raises `TrainingError` if plotext is not installed.
    """
    try:
        import plotext
    except ImportError as error:
        raise TrainingError(
            "a picture in the terminal needs the package plotext: pip install 'streamrnn[train]'"
        ) from error
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(max(width, 20), height)
    markers = {"line": "braille", "dots": "·"}
    named = [f"{word} {name}" for word, name in zip(markers, curves, strict=False)]
    legend = ", ".join(named) if len(curves) > 1 else ""
    figure.title(": ".join(part for part in (title, legend) if part))
    for marker, (steps, values) in zip(markers.values(), curves.values(), strict=False):
        signal = figure.signal(steps, values, marker=marker)
        signal.lines()
        figure.draw(signal)
    if limits is not None:
        figure.ruler("y").lim(*limits)
    if ticks is not None:
        figure.ruler("x").ticks(*ticks)
    text = plotext.uncolorize(str(figure.build()))
    return [line.rstrip() for line in text.splitlines()]


def write_trace(trace: Trace, path: Path) -> None:
    """Draw all gates and the state as a PNG file, the steps' labels below.

    Raises `TrainingError` if matplotlib is not installed, or another file is there.
    """
    from streamrnn.training.run.figure import check_figure

    check_figure(path)
    from matplotlib.figure import Figure

    steps = np.arange(trace.first, trace.first + len(trace.state))
    figure = Figure(figsize=(max(8.0, min(24.0, 0.3 * len(steps))), 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    marker = "o" if len(steps) <= 60 else None
    for k, (name, values) in enumerate(trace.gates.items()):
        style = {"linewidth": 2.0} if not k else {"linewidth": 1.0, "linestyle": "--"}
        above.plot(steps, values, label=name, marker=marker, markersize=3, **style)
    above.set(ylim=(-0.02, 1.02), ylabel="0 resets, 1 keeps", title=trace.title)
    if trace.gates:
        above.legend()
    below.plot(steps, trace.state, color="black", marker=marker, markersize=3)
    below.axhline(0.0, color="grey", linewidth=0.5)
    below.set(ylabel=trace.state_name, xlabel="" if trace.labels else "step")
    if trace.labels:
        below.set_xticks(steps, trace.labels, rotation=90)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100, metadata={"Software": "StreamRNN"})
    replace_file(path, data.getvalue())
