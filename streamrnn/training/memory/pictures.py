"""Loss by history and gradients by lag, drawn: in the terminal, and as panels of a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamrnn.model.tensor_file import replace_file
from streamrnn.training.memory.trace import plot_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_memory", "memory_text", "write_memory"]

Curve = tuple[list[int], list[float]]


def _history_curve(history: dict[str, Any]) -> Curve:
    steps = sorted(map(int, history["shares"]))
    return steps, [history["shares"][str(k)] for k in steps]


def _gradient_curves(gradients: dict[str, Any]) -> dict[str, Curve]:
    """Return shares of the gradient at lag 0 by the layer's and state's name."""
    of = "y" if gradients.get("is_of_outputs") else "L"
    curves = {}
    for each in gradients["layers"]:
        for name in ("h", "c"):
            values = each[f"by_{name}"]
            if values and values["0"] > 0:
                lags = sorted(map(int, values))
                shares = [values[str(lag)] / values["0"] for lag in lags]
                curves[f"|d{of}/d{name}| of layer {each['layer'] + 1}"] = lags, shares
    return curves


def memory_text(memory: dict[str, Any], width: int = 88) -> list[str]:
    """Draw what was measured for a terminal; raise `TrainingError` if plotext is not installed."""
    lines: list[str] = []
    if memory["history"]:
        title = "loss as a share of a constant's, by steps given before a row"
        if memory["history"]["is_of_outputs"]:
            title = "distance of outputs from those with all of the past, by steps given"
        lines += [title, *_by_power({"": _history_curve(memory["history"])}, width)]
    if memory["gradients"]:
        found = _gradient_curves(memory["gradients"])
        top = dict(list(found.items())[-2:])  # of the last layer
        if top:
            lines += ["share of the gradient at lag 0 that is left, by lag", *_by_power(top, width)]
    return lines


def _by_power(curves: dict[str, Curve], width: int) -> list[str]:
    """Draw curves over the same steps, which grow like powers of two, side by side."""
    [steps, *_] = [steps for steps, _ in curves.values()]
    places = list(range(len(steps)))
    drawn = {name: (places, values) for name, (_, values) in curves.items()}
    shown = [k for k in places if steps[k] & (steps[k] - 1) == 0 or k == places[-1]]
    ticks = (shown, [str(steps[k]) for k in shown])
    return plot_curves("", drawn, min(width, 100), 12, ticks=ticks)


def _draw_history(axes: Axes, history: dict[str, Any]) -> None:
    """Draw the loss against the history that is given."""
    steps, shares = _history_curve(history)
    axes.plot(steps, shares, marker="o", markersize=3)
    axes.axhline(history["full"], color="grey", linestyle=":", label="with all of the past")
    axes.axhline(1.0, color="lightgrey", label="a constant")
    axes.axvline(history["uses_steps"], color="C1", linestyle="--", label="uses so many")
    _by_powers(axes, steps)
    skill = "" if history["has_skill"] or history["is_of_outputs"] else ": no skill"
    axes.set(title=f"loss by history given{skill}", xlabel="steps before the row")
    axes.set_ylabel("share of a constant's loss")
    axes.legend()


def _by_powers(axes: Axes, steps: list[int]) -> None:
    """Lay steps out by their logarithm, 0 beside 1."""
    axes.set_xscale("symlog", base=2, linthresh=1)
    shown = [k for k in steps if k & (k - 1) == 0]
    axes.set_xticks(shown, [str(k) for k in shown])
    axes.set_xlim(-0.2, 1.1 * max(steps[-1], 1))


def _draw_gradients(axes: Axes, gradients: dict[str, Any]) -> None:
    """Draw how gradients fade."""
    for name, (lags, shares) in _gradient_curves(gradients).items():
        axes.plot(lags, shares, marker="o", markersize=3, label=name)
        _by_powers(axes, lags)
    axes.axhline(0.01, color="grey", linestyle=":", label="faded")
    axes.set_yscale("log")
    axes.set_ylim(bottom=1e-6)
    axes.set(title="gradient by lag", xlabel="lag in steps", ylabel="share of that at lag 0")
    axes.legend()


def write_memory(memory: dict[str, Any], path: Path) -> None:
    """Draw both as a PNG file; raise `TrainingError` as `check_figure` does."""
    from streamrnn.training.run.figure import check_figure

    check_figure(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_memory(left, right, memory)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100, metadata={"Software": "StreamRNN"})
    replace_file(path, data.getvalue())


def draw_memory(left: Axes, right: Axes, memory: dict[str, Any]) -> None:
    """Draw what was measured; an empty panel is left of what was not."""
    panels = ((left, "history", _draw_history), (right, "gradients", _draw_gradients))
    for axes, key, draw in panels:
        if memory.get(key):
            draw(axes, memory[key])
        else:
            axes.set_axis_off()
