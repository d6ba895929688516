"""The learning curve of a training, as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from streamrnn.errors import TrainingError
from streamrnn.training.fit.trainer import Epoch

__all__ = ["learning_curve"]

NUM_TICKS = 6


def learning_curve(history: Sequence[Epoch], width: int = 78, height: int = 16) -> str:
    """Draw the losses of every epoch; raise `TrainingError` if plotext is not installed."""
    try:
        import plotext
    except ImportError as error:
        raise TrainingError(
            "the learning curve needs the package plotext: pip install 'streamrnn[train]'"
        ) from error
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(max(width, 20), height)
    figure.title("loss by epoch: dots train, line validation")
    losses = []
    for marker, values in (
        ("·", [epoch.train for epoch in history]),
        ("braille", [epoch.validation for epoch in history]),
    ):
        finite = [k for k, value in enumerate(values) if math.isfinite(value)]
        if finite:
            signal = figure.signal(
                [history[k].epoch for k in finite], [values[k] for k in finite], marker=marker
            )
            signal.lines()
            figure.draw(signal)
            losses += [values[k] for k in finite]
    if losses and min(losses) > 0:
        figure.ruler("y").scale("log")
    last = history[-1].epoch if history else 1
    figure.ruler("x").ticks(
        sorted({1 + round(k * (last - 1) / NUM_TICKS) for k in range(NUM_TICKS + 1)})
    )
    text = plotext.uncolorize(str(figure.build()))
    return "\n".join(line.rstrip() for line in text.splitlines())
