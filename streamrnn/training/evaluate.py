"""Outputs of a network on a part of the data, for its loss and its errors.

The state is carried through the parts as a stream would be served. While training, a limited
history is enough to warm up with; the errors that are reported come from the whole history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from streamrnn.training.baselines.logistic import log_softmax
from streamrnn.training.baselines.target import Prediction, Target
from streamrnn.training.data.dataset import Dataset, Stream
from streamrnn.training.data.stacking import stack_rows
from streamrnn.training.network.layers import Array, State
from streamrnn.training.network.losses import sum_of_losses
from streamrnn.training.network.network import Chunk, Network

__all__ = ["CarriedOutputs", "NetworkOutputs", "mean_loss", "outputs_of"]

HISTORY_STEPS = 1024
PIECE_STEPS = 4096
MAX_ELEMENTS = 4_000_000  # steps x rows side by side, of no more outputs than
FEW_OUTPUTS = 8
STEPS_AT_ONCE = 512
MAX_KEPT = 64_000_000  # outputs of all streams

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
    most = FEW_OUTPUTS * MAX_ELEMENTS // max(dataset.spec.output_size, FEW_OUTPUTS)
    while pieces:
        num_rows = 1
        while num_rows < len(pieces) and (num_rows + 1) * _length(pieces[num_rows]) <= most:
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
        more, num = sum_of_losses(
            dataset.loss, network.activation, z, target, dataset.loss_settings
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
        whole = [(k, 0, 0, stream.stops[2]) for k, stream in enumerate(dataset.streams)]
        names = [stream.name for stream in dataset.streams]
        outputs = _outputs(network, dataset, [piece for piece in whole if piece[3]])
        return cls(dataset, {names[piece[0]]: z.copy() for piece, z in outputs})

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
        blocks = []
        while self._position < rows.stop:
            z = self._advance(stream, min(self._position + STEPS_AT_ONCE, rows.stop))
            blocks.append(z[:, 0].copy())
        return _prediction(target, np.concatenate(blocks))

    def _advance(self, stream: Stream, stop: int) -> Array:
        now = slice(self._position, stop)
        codes = {name: code[now] for name, code in stream.chunk.codes.items()}
        chunk = Chunk(stream.chunk.features[now], codes)
        z, self._state = self._network.forward(chunk, self._state)
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
