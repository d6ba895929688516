"""Outputs of a network on a part of the data, and its errors in the user's units.

The state is carried through the parts as a stream would be served. While training, a limited
history is enough to warm up with; the errors that are reported come from the whole history.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from streamrnn.training.dataset import Dataset
from streamrnn.training.layers import Array
from streamrnn.training.losses import activate, sum_of_losses
from streamrnn.training.network import Chunk, Network
from streamrnn.training.stacking import stack_rows

__all__ = ["Piece", "mean_loss", "part_errors", "part_outputs", "score"]

HISTORY_STEPS = 1024
PIECE_STEPS = 4096
MAX_ELEMENTS = 4_000_000  # steps x rows at once

# Stream, first row with its history, first row that counts, and the row after the last.
Piece = tuple[int, int, int, int]


def _pieces(dataset: Dataset, part: str, whole: bool) -> Iterator[list[Piece]]:
    """Yield batches of pieces of a part; `whole` pieces have their stream's whole history."""
    pieces: list[Piece] = []
    for k, stream in enumerate(dataset.streams):
        rows = stream.rows(part)
        size = max(rows.stop, 1) if whole else PIECE_STEPS
        for start in range(rows.start, rows.stop, size):
            history = 0 if whole else max(0, start - HISTORY_STEPS)
            pieces.append((k, history, start, min(start + size, rows.stop)))
    pieces.sort(key=lambda piece: piece[3] - piece[1])
    batch: list[Piece] = []
    for piece in pieces:
        if batch and (len(batch) + 1) * (piece[3] - piece[1]) > MAX_ELEMENTS:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def part_outputs(
    network: Network, dataset: Dataset, part: str, whole: bool = True
) -> Iterator[tuple[int, slice, Array]]:
    """Yield the network's pre-activations for every row of a part.

    Parameters
    ----------
    network : Network
        The weights to use.
    dataset : Dataset
        The data.
    part : str
        One of `streamrnn.training.dataset.PARTS`.
    whole : bool
        Whether every stream runs from its first row. If not, `HISTORY_STEPS` rows warm it up.

    Yields
    ------
    stream : int
        Index of the stream.
    rows : slice
        Its rows.
    z : ndarray [rows, O]
        Before the head's activation.
    """
    for batch in _pieces(dataset, part, whole):
        chunk, _ = stack_rows(dataset.streams, [(k, a, c) for k, a, _, c in batch])
        state = network.initial_state(len(batch))
        num_steps = len(chunk.features)
        z = np.empty((num_steps, len(batch), dataset.spec.output_size), network.dtype)
        for start in range(0, num_steps, 512):
            now = slice(start, start + 512)
            codes = {name: code[now] for name, code in chunk.codes.items()}
            z[now], state = network.forward(Chunk(chunk.features[now], codes), state)
        for b, (k, history, start, stop) in enumerate(batch):
            yield k, slice(start, stop), z[start - history : stop - history, b]


def mean_loss(network: Network, dataset: Dataset, part: str) -> float:
    """Return the mean loss over a part, each stream warmed up by its last rows before it.

    Parameters
    ----------
    network : Network
        The weights to use.
    dataset : Dataset
        The data.
    part : str
        One of `streamrnn.training.dataset.PARTS`.

    Returns
    -------
    float
        In network units; may be Inf or NaN.
    """
    total, count = 0.0, 0
    for k, rows, z in part_outputs(network, dataset, part, whole=False):
        target = dataset.streams[k].target[rows]
        more, num = sum_of_losses(dataset.loss, network.activation, z, target)
        total, count = total + more, count + num
    return total / max(count, 1)


def part_errors(network: Network, dataset: Dataset, part: str) -> dict[str, dict[str, float]]:
    """Return the errors over a part in the user's units, with the whole history as warm-up.

    Parameters
    ----------
    network : Network
        The weights to use.
    dataset : Dataset
        The data.
    part : str
        One of `streamrnn.training.dataset.PARTS`.

    Returns
    -------
    dict
        As `score` returns it.
    """
    found = sorted(part_outputs(network, dataset, part), key=lambda item: item[0])
    targets = np.concatenate([dataset.streams[k].target[rows] for k, rows, _ in found])
    return score(dataset, np.concatenate([z for _, _, z in found]), targets)


def score(dataset: Dataset, z: Array, target: Array) -> dict[str, dict[str, float]]:
    """Measure predictions against targets.

    Parameters
    ----------
    dataset : Dataset
        For the loss and the outputs' names and scales.
    z : ndarray [N, O]
        Pre-activations of the head.
    target : ndarray [N, O], or [N, 1] with classes
        NaN where missing.

    Returns
    -------
    dict of str to dict of str to float
        For every target: ``rmse`` and ``mae`` in its units, or the mean loss in nats and
        ``accuracy``.
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
