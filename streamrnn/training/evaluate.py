"""Outputs of a network on a part of the data, and its errors in the user's units.

The state is carried through the parts as a stream would be served. While training, a limited
history is enough to warm up with; the errors that are reported come from the whole history.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from streamrnn.training.data.dataset import PARTS, Dataset
from streamrnn.training.data.stacking import stack_rows
from streamrnn.training.network.layers import Array
from streamrnn.training.network.losses import activate, sum_of_losses
from streamrnn.training.network.network import Chunk, Network

__all__ = ["all_errors", "mean_loss", "score"]

HISTORY_STEPS = 1024
PIECE_STEPS = 4096
MAX_ELEMENTS = 4_000_000  # steps x rows side by side
STEPS_AT_ONCE = 512

# Stream, first row with its history, first row that counts, and the row after the last.
Piece = tuple[int, int, int, int]


def _pieces(dataset: Dataset, part: str) -> list[Piece]:
    """Cut a part into pieces to run side by side, each with some history before it."""
    pieces = []
    for k, stream in enumerate(dataset.streams):
        rows = stream.rows(part)
        for start in range(rows.start, rows.stop, PIECE_STEPS):
            stop = min(start + PIECE_STEPS, rows.stop)
            pieces.append((k, max(0, start - HISTORY_STEPS), start, stop))
    return pieces


def _outputs(
    network: Network, dataset: Dataset, pieces: list[Piece]
) -> Iterator[tuple[Piece, Array]]:
    """Yield each piece with its pre-activations, [rows that count, O], in any order."""
    pieces = sorted(pieces, key=lambda piece: piece[3] - piece[1])
    while pieces:
        num_rows = 1
        while num_rows < len(pieces) and (num_rows + 1) * _length(pieces[num_rows]) <= MAX_ELEMENTS:
            num_rows += 1
        batch, pieces = pieces[:num_rows], pieces[num_rows:]
        chunk, _ = stack_rows(dataset.streams, [(k, begin, stop) for k, begin, _, stop in batch])
        state = network.initial_state(num_rows)
        num_steps = len(chunk.features)
        z = np.empty((num_steps, num_rows, dataset.spec.output_size), network.dtype)
        for start in range(0, num_steps, STEPS_AT_ONCE):
            now = slice(start, start + STEPS_AT_ONCE)
            codes = {name: code[now] for name, code in chunk.codes.items()}
            z[now], state = network.forward(Chunk(chunk.features[now], codes), state)
        for b, piece in enumerate(batch):
            _, begin, start, stop = piece
            yield piece, z[start - begin : stop - begin, b]


def _length(piece: Piece) -> int:
    return piece[3] - piece[1]


def mean_loss(network: Network, dataset: Dataset, part: str) -> float:
    """Mean loss over a part in network units; may be Inf or NaN.

    Each stream is warmed up by the rows before the part.
    """
    total, count = 0.0, 0
    for (k, _, start, stop), z in _outputs(network, dataset, _pieces(dataset, part)):
        target = dataset.streams[k].target[start:stop]
        more, num = sum_of_losses(dataset.loss, network.activation, z, target)
        total, count = total + more, count + num
    return total / max(count, 1)


def all_errors(network: Network, dataset: Dataset) -> dict[str, dict[str, dict[str, float]]]:
    """Errors of every part, each stream run from its first row: by part, `score`."""
    whole = [(k, 0, 0, stream.stops[2]) for k, stream in enumerate(dataset.streams)]
    z = {piece[0]: out.copy() for piece, out in _outputs(network, dataset, whole) if len(out)}
    errors = {}
    for part in PARTS:
        rows = {k: dataset.streams[k].rows(part) for k in sorted(z)}
        errors[part] = score(
            dataset,
            np.concatenate([z[k][rows[k]] for k in rows]),
            np.concatenate([dataset.streams[k].target[rows[k]] for k in rows]),
        )
    return errors


def score(dataset: Dataset, z: Array, target: Array) -> dict[str, dict[str, float]]:
    """Measure pre-activations of the head, [N, O], against targets.

    Targets are [N, O], or [N, 1] with classes, and NaN where missing. Returns for every target
    ``rmse`` and ``mae`` in its units, or the mean loss in nats and ``accuracy``.
    """
    if dataset.loss == "cross_entropy":
        present = ~np.isnan(target[:, 0])
        total, count = sum_of_losses("cross_entropy", "softmax", z.astype(np.float64), target)
        right = z[present].argmax(axis=1) == target[present, 0]
        name = dataset.config.predict[0]
        return {name: {"cross_entropy": total / count, "accuracy": float(right.mean())}}
    errors = {}
    for o, output in enumerate(dataset.spec.outputs):
        present = ~np.isnan(target[:, o])
        known, guess = target[present, o].astype(np.float64), z[present, o].astype(np.float64)
        if dataset.loss == "mse":
            error = (guess - known) * output.scale
            errors[output.name] = {
                "rmse": math.sqrt(np.mean(error**2)),
                "mae": float(np.mean(np.abs(error))),
            }
        else:
            total, count = sum_of_losses(dataset.loss, "sigmoid", guess, known)
            right = (activate(guess, "sigmoid") >= 0.5) == (known == 1.0)
            errors[output.name] = {
                "binary_cross_entropy": total / count,
                "accuracy": float(right.mean()),
            }
    return errors
