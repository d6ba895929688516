"""Outputs of a network on a part of the data, for its loss and its errors.

The state is carried through the parts as a stream would be served. While training, a limited
history is enough to warm up with; the errors that are reported come from the whole history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamrnn.training.baselines.logistic import log_softmax
from streamrnn.training.baselines.target import Prediction, Target
from streamrnn.training.data.dataset import Dataset, Stream
from streamrnn.training.data.stacking import stack_rows
from streamrnn.training.network.layers import Array, State
from streamrnn.training.network.losses import sum_of_losses
from streamrnn.training.network.network import Chunk, Network

__all__ = ["CarriedOutputs", "NetworkOutputs", "PartLoss", "cut_pieces", "mean_loss", "outputs_of"]

Index = NDArray[np.int64]

HISTORY_STEPS = 1024
PIECE_STEPS = 4096
STEPS_AT_ONCE = 512
MAX_ELEMENTS = 32_000_000  # outputs of pieces that run side by side
MAX_BYTES = 64 << 20  # of what the network keeps of them
LOSS_ROWS = 4096  # whose loss is computed at once
MAX_KEPT = 64_000_000  # outputs of all streams

# Stream, first row with its history, first row that counts, and the row after the last.
Piece = tuple[int, int, int, int]


def cut_pieces(rows: slice) -> list[tuple[int, int, int]]:
    """Cut rows of a stream: the first one with its history, the first, the one after the last."""
    return [
        (max(0, start - HISTORY_STEPS), start, min(start + PIECE_STEPS, rows.stop))
        for start in range(rows.start, rows.stop, PIECE_STEPS)
    ]


def _batches(network: Network, pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Part pieces into such as run side by side, alike in length, in bounded memory."""
    pieces = sorted(pieces, key=lambda piece: piece[1] - piece[3])
    step_bytes = sum(node.bytes_a_step for node in network.nodes)
    while pieces:
        longest = pieces[0][3] - pieces[0][1]
        by_outputs = MAX_ELEMENTS // (longest * network.spec.output_size)
        by_bytes = MAX_BYTES // (min(longest, STEPS_AT_ONCE) * step_bytes)
        num_rows = max(1, min(by_outputs, by_bytes))
        yield pieces[:num_rows]
        pieces = pieces[num_rows:]


def _forward(network: Network, chunk: Chunk, state: list[State]) -> tuple[Array, list[State]]:
    """Return pre-activations, [T, B, O] and the caller's own, and the new state."""
    num_steps, num_rows, _ = chunk.features.shape
    z = np.empty((num_steps, num_rows, network.spec.output_size), network.dtype)
    for start in range(0, num_steps, STEPS_AT_ONCE):
        now = slice(start, start + STEPS_AT_ONCE)
        z[now], state = network.forward(chunk.steps(now), state)
    return z, state


def mean_loss(network: Network, dataset: Dataset, part: str) -> float:
    """Mean loss over a part in network units; may be Inf or NaN.

    Each stream is warmed up by the rows before the part.
    """
    return PartLoss(network, dataset, part).now()


class PartLoss:
    """Mean loss of a network over a part, whenever it is asked for."""

    def __init__(self, network: Network, dataset: Dataset, part: str) -> None:
        self._network, self._dataset = network, dataset
        pieces = [
            (k, *piece)
            for k, stream in enumerate(dataset.streams)
            for piece in cut_pieces(stream.rows(part))
        ]
        # What runs side by side, which of its rows have a target of the part, and these.
        self._batches: list[tuple[Chunk, Index, Array]] = []
        for batch in _batches(network, pieces):
            rows_of = [(k, begin, stop) for k, begin, _, stop in batch]
            chunk, target = stack_rows(dataset.streams, rows_of)
            for b, (_, begin, start, _) in enumerate(batch):
                target[: start - begin, b] = np.nan
            flat = target.reshape(-1, target.shape[2])
            counted = np.flatnonzero(~np.isnan(flat).all(axis=1))
            self._batches.append((chunk, counted, flat[counted]))

    def now(self) -> float:
        """Mean loss of the network as it is, in network units; may be Inf or NaN."""
        network, dataset, total, count = self._network, self._dataset, 0.0, 0
        for chunk, counted, target in self._batches:
            z, _ = _forward(network, chunk, network.initial_state(chunk.features.shape[1]))
            z = z.reshape(-1, z.shape[2])[counted]
            for start in range(0, len(z), LOSS_ROWS):
                now = slice(start, start + LOSS_ROWS)
                more, num = sum_of_losses(
                    dataset.loss, network.activation, z[now], target[now], dataset.loss_settings
                )
                total, count = total + more, count + num
        return total / max(count, 1)


@dataclass(frozen=True)
class NetworkOutputs:
    """Pre-activations of a network for every row, each stream run from its first."""

    dataset: Dataset
    z: dict[str, Array]  # by the stream's name, [T, O] up to the last target

    @classmethod
    def of(cls, network: Network, dataset: Dataset) -> NetworkOutputs:
        """Run a network over all streams."""
        streams, found = dataset.streams, {}
        whole = [(k, 0, 0, stream.stops[2]) for k, stream in enumerate(streams)]
        for batch in _batches(network, [piece for piece in whole if piece[3]]):
            chunk, _ = stack_rows(streams, [(k, 0, stop) for k, _, _, stop in batch])
            z, _ = _forward(network, chunk, network.initial_state(len(batch)))
            for b, (k, _, _, stop) in enumerate(batch):
                found[streams[k].name] = z[:stop, b].copy()
        return cls(dataset, found)

    def predict(self, target: Target, stream: Stream, rows: slice) -> Prediction:
        """Return the network's prediction, as a baseline's is."""
        return _prediction(target, self.z[stream.name][rows])


class CarriedOutputs:
    """The same, computed when it is asked for: of many classes, all would take too much memory.

    Rows that follow those asked for before go on from their state.
    """

    def __init__(self, network: Network) -> None:
        self.z: dict[str, Array] = {}  # of no stream
        self._network = network
        self._stream: Stream | None = None
        self._position = 0
        self._state: list[State] = []

    def predict(self, target: Target, stream: Stream, rows: slice) -> Prediction:
        """Return the network's prediction, as a baseline's is."""
        if stream is not self._stream or rows.start < self._position:
            self._stream, self._position = stream, 0
            self._state = self._network.initial_state(1)
        while self._position < rows.start:
            self._advance(stream, min(self._position + STEPS_AT_ONCE, rows.start))
        return _prediction(target, self._advance(stream, rows.stop)[:, 0])

    def _advance(self, stream: Stream, stop: int) -> Array:
        chunk = stream.chunk.steps(slice(self._position, stop))
        z, self._state = _forward(self._network, chunk, self._state)
        self._position = stop
        return z


def _prediction(target: Target, z: Array) -> Prediction:
    z = z.astype(np.float64)
    if target.metric == "cross_entropy":
        return Prediction(log_softmax(z), z.argmax(axis=1))
    own = z[:, target.output]
    if target.metric == "binary_cross_entropy":
        log_p = -np.logaddexp(0.0, np.stack([own, -own], axis=1))
        return Prediction(log_p, (own >= 0.0).astype(np.int64))
    return Prediction(own)


def outputs_of(network: Network, dataset: Dataset) -> NetworkOutputs | CarriedOutputs:
    """Return what predicts as a network does, each stream run from its first row."""
    num_rows = sum(stream.stops[2] for stream in dataset.streams)
    size = num_rows * dataset.spec.output_size
    if dataset.loss == "cross_entropy" and size > MAX_KEPT:
        return CarriedOutputs(network)
    return NetworkOutputs.of(network, dataset)
