"""The learning curve of a training, as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from streamrnn.errors import TrainingError
from streamrnn.training.fit.trainer import Evaluation

__all__ = ["learning_curve"]

NUM_TICKS = 6


def learning_curve(history: Sequence[Evaluation], width: int = 78, height: int = 16) -> str:
    """Draw the losses of a training; raise `TrainingError` if plotext is not installed."""
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
    figure.title("loss by update: dots train, line validation")
    losses = []
    for marker, values in (
        ("·", [evaluation.train for evaluation in history]),
        ("braille", [evaluation.validation for evaluation in history]),
    ):
        finite = [k for k, value in enumerate(values) if math.isfinite(value)]
        if finite:
            signal = figure.signal(
                [history[k].num_updates for k in finite],
                [values[k] for k in finite],
                marker=marker,
            )
            signal.lines()
            figure.draw(signal)
            losses += [values[k] for k in finite]
    if losses and min(losses) > 0:
        figure.ruler("y").scale("log")
    last = history[-1].num_updates if history else 0
    figure.ruler("x").ticks(sorted({round(k * last / NUM_TICKS) for k in range(NUM_TICKS + 1)}))
    text = plotext.uncolorize(str(figure.build()))
    return "\n".join(line.rstrip() for line in text.splitlines())
