"""Outputs of a network on a part of the data, for its loss and its errors.

The state is carried through the parts as a stream would be served. While training, a limited
history is enough to warm up with; the errors that are reported come from the whole history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import ModelError
from streamrnn.model.model import Model
from streamrnn.model.spec import HeadSpec, InputSpec, ModelSpec, OutputSpec
from streamrnn.training.baselines.logistic import log_softmax
from streamrnn.training.baselines.target import Prediction, Target
from streamrnn.training.data.dataset import Dataset, Stream
from streamrnn.training.data.stacking import stack_rows
from streamrnn.training.network.layers import Array
from streamrnn.training.network.losses import sum_of_losses
from streamrnn.training.network.network import Network

__all__ = ["CarriedOutputs", "NetworkOutputs", "PartLoss", "mean_loss", "outputs_of"]

Index = NDArray[np.int64]

HISTORY_STEPS = 1024
PIECE_STEPS = 4096
MAX_ELEMENTS = 32_000_000  # outputs of pieces that run together
STEPS_AT_ONCE = 512
LOSS_ROWS = 4096  # whose loss is computed at once
MAX_KEPT = 64_000_000  # outputs of all streams


class Runner:
    """Runs a network over rows of a dataset's streams, up to the pre-activations.

    The engine's compiled steps do it, many pieces at once; the network itself, where they do not
    give that: for float64, and for a head whose activation layers read.
    """

    def __init__(self, dataset: Dataset) -> None:
        from streamrnn.engine.sequences import Sequences, in_batches

        self._sequences_of, self._in_batches = Sequences, in_batches
        self._dataset = dataset
        self._x = _steps(dataset)
        self._is_finite = bool(np.isfinite(self._x).all())
        lengths = np.array([len(stream.x) for stream in dataset.streams], np.int64)
        self._firsts = np.cumsum(lengths) - lengths  # of each stream in x
        self._sequences: Sequences | None = None
        self._network: Network | None = None

    def load(self, network: Network) -> None:
        """Take a network as it is now."""
        if self._network is None or network.spec != self._network.spec:
            self._sequences = None
            self._spec, self._names = _bare(network.spec)
        self._network, self._is_stepped = network, False
        if network.dtype != np.float32 or not _is_last(network) or not self._is_finite:
            return
        parameters = {self._names.get(name, name): p for name, p in network.parameters.items()}
        try:
            model = Model(self._spec, parameters)
        except ModelError:  # not finite: what it gives is not either
            return
        if self._sequences is None:
            self._sequences = self._sequences_of(model, self._x)
        else:
            self._sequences.load(model)
        self._is_stepped = True

    def batches(self, pieces: Index) -> Iterator[Index]:
        """Part pieces, [n, 3], into such as run together in bounded memory."""
        most = MAX_ELEMENTS // self._dataset.spec.output_size
        for batch in self._in_batches(pieces[:, 2] - pieces[:, 1], most):
            yield pieces[batch]

    def run(self, pieces: Index) -> Array:
        """Run pieces, [n, 3] of stream, first row and the row after the last, each anew.

        Returns the pre-activations, [rows of all, O], piece after piece.
        """
        return self.go_on(pieces, None)[0]

    def go_on(self, pieces: Index, states: Any) -> tuple[Array, Any]:
        """Run pieces from states that this returned for the rows before; None: new ones."""
        streams, starts, stops = pieces.T
        if self._is_stepped:
            assert self._sequences is not None
            states = self._sequences.new_states(len(pieces)) if states is None else states
            firsts = self._firsts[streams] + starts
            return self._sequences.run(firsts, stops - starts, states), states
        network = self._network
        assert network is not None
        states = network.initial_state(len(pieces)) if states is None else states
        rows = [(int(k), int(start), int(stop)) for k, start, stop in pieces]
        chunk, _ = stack_rows(self._dataset.streams, rows)
        blocks = []
        for begin in range(0, len(chunk.features), STEPS_AT_ONCE):
            z, states = network.forward(chunk.steps(slice(begin, begin + STEPS_AT_ONCE)), states)
            blocks.append(z.copy())
        z = np.concatenate(blocks)
        return np.concatenate([z[: stop - start, b] for b, (_, start, stop) in enumerate(rows)]), (
            states
        )


def _is_last(network: Network) -> bool:
    """Tell whether a model whose head is linear gives the network's pre-activations."""
    spec = network.spec
    return network.activation == "identity" or len(spec.layers) not in spec.graph.kept


def _bare(spec: ModelSpec) -> tuple[ModelSpec, dict[str, str]]:
    """Return a model's description from the features to the pre-activations.

    Every numeric feature is an input of its own. With it come the new names of parameters.
    """
    inputs: list[InputSpec] = []
    names = {}
    for item in spec.inputs:
        if item.kind == "numeric":
            inputs += [InputSpec(str(len(inputs) + k)) for k in range(item.num_features)]
        else:
            name = str(len(inputs))
            names[f"embedding.{item.name}.weight"] = f"embedding.{name}.weight"
            inputs.append(replace(item, name=name))
    outputs = tuple(OutputSpec(str(o)) for o in range(spec.output_size))
    head = HeadSpec() if spec.head else None
    bare = replace(
        spec, inputs=tuple(inputs), outputs=outputs, head=head, warmup_steps=0, training={}
    )
    return bare, names


def _steps(dataset: Dataset) -> Array:
    """Return all streams as inputs of the bare model, [rows of all, I]."""
    spec = dataset.spec
    if spec.is_token:
        return np.concatenate([stream.x for stream in dataset.streams]).astype(np.uint32)
    columns, start = [], 0
    for i, item in enumerate(spec.inputs):
        own = slice(start, start + item.num_features)
        columns.append(
            np.concatenate(
                [
                    s.chunk.features[:, 0, own] if item.kind == "numeric" else s.x[:, i : i + 1]
                    for s in dataset.streams
                ]
            )
        )
        start = own.stop
    return np.concatenate(columns, axis=1, dtype=np.float32)


def mean_loss(network: Network, dataset: Dataset, part: str) -> float:
    """Mean loss over a part in network units; may be Inf or NaN.

    Each stream is warmed up by the rows before the part.
    """
    return PartLoss(dataset, part).of(network)


class PartLoss:
    """Mean loss over one part, for one network after the other."""

    def __init__(self, dataset: Dataset, part: str) -> None:
        self._dataset, self._runner = dataset, Runner(dataset)
        pieces = []
        for k, stream in enumerate(dataset.streams):
            rows = stream.rows(part)
            for start in range(rows.start, rows.stop, PIECE_STEPS):
                stop = min(start + PIECE_STEPS, rows.stop)
                pieces.append((k, max(0, start - HISTORY_STEPS), start, stop))
        table = np.array(pieces, np.int64).reshape(-1, 4)
        # Pieces that run together, which of their rows have a target of the part, and these.
        self._batches: list[tuple[Index, Index, Array]] = []
        for batch in self._runner.batches(table[:, [0, 1, 3, 2]]):
            targets = []
            for k, begin, stop, start in batch.tolist():
                target = dataset.streams[k].target[begin:stop].copy()
                target[: start - begin] = np.nan
                targets.append(target)
            joined = np.concatenate(targets)
            counted = np.flatnonzero(~np.isnan(joined).all(axis=1))
            self._batches.append((batch[:, :3], counted, joined[counted]))

    def of(self, network: Network) -> float:
        """Mean loss of a network in network units; may be Inf or NaN."""
        dataset, total, count = self._dataset, 0.0, 0
        self._runner.load(network)
        for pieces, counted, target in self._batches:
            z = self._runner.run(pieces)[counted]
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
        runner = Runner(dataset)
        runner.load(network)
        stops = [stream.stops[2] for stream in dataset.streams]
        pieces = [(k, 0, stop) for k, stop in enumerate(stops) if stop]
        found = {}
        for batch in runner.batches(np.array(pieces, np.int64).reshape(-1, 3)):
            ends = np.cumsum(batch[:, 2])
            z = runner.run(batch)
            for (k, _, stop), end in zip(batch.tolist(), ends.tolist(), strict=True):
                found[dataset.streams[k].name] = z[end - stop : end]
        return cls(dataset, found)

    def predict(self, target: Target, stream: Stream, rows: slice) -> Prediction:
        """Return the network's prediction, as a baseline's is."""
        return _prediction(target, self.z[stream.name][rows])


class CarriedOutputs:
    """The same, computed when it is asked for: of many classes, all would take too much memory.

    Rows that follow those asked for before go on from their state.
    """

    def __init__(self, network: Network, dataset: Dataset) -> None:
        self.z: dict[str, Array] = {}  # of no stream
        self._runner = Runner(dataset)
        self._runner.load(network)
        self._streams = {stream.name: k for k, stream in enumerate(dataset.streams)}
        self._stream, self._position = -1, 0
        self._states: Any = None

    def predict(self, target: Target, stream: Stream, rows: slice) -> Prediction:
        """Return the network's prediction, as a baseline's is."""
        k = self._streams[stream.name]
        if k != self._stream or rows.start < self._position:
            self._stream, self._position, self._states = k, 0, None
        while self._position < rows.start:
            self._advance(min(self._position + STEPS_AT_ONCE, rows.start))
        blocks = []
        while self._position < rows.stop:
            blocks.append(self._advance(min(self._position + STEPS_AT_ONCE, rows.stop)))
        return _prediction(target, np.concatenate(blocks))

    def _advance(self, stop: int) -> Array:
        pieces = np.array([(self._stream, self._position, stop)], np.int64)
        z, self._states = self._runner.go_on(pieces, self._states)
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
    dataset = replace(dataset, spec=network.spec)  # a linear path may have come to it
    num_rows = sum(stream.stops[2] for stream in dataset.streams)
    size = num_rows * dataset.spec.output_size
    if dataset.loss == "cross_entropy" and size > MAX_KEPT:
        return CarriedOutputs(network, dataset)
    return NetworkOutputs.of(network, dataset)
