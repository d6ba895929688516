"""An LSTM of PyTorch, trained on what ours was: the same rows, features, batches and updates.

Trained as is usual: Adam, a bound on the gradient's norm, truncated backpropagation through time
with the state carried on, and the weights kept that were best on the validation part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamrnn.training.baselines.logistic import log_softmax
from streamrnn.training.baselines.target import Prediction, Target
from streamrnn.training.data.dataset import Dataset, Stream
from streamrnn.training.data.stacking import stack_rows
from streamrnn.training.network.network import Chunk
from streamrnn_bench.report.results import BenchError

__all__ = ["Effort", "TorchLstm", "fit_lstm"]

# As many of them as there are short trainings, the usual ones first.
LEARNING_RATES = (3e-3, 1e-3, 1e-2, 5e-3, 2e-3, 2e-2, 3e-4, 3e-2)
NUM_EVALUATIONS = 50
HISTORY_STEPS = 1024  # before the validation part
CLIP_NORM = 1.0


@dataclass(frozen=True)
class Effort:
    """How much may be tried: short trainings, then some of the full length."""

    num_short: int
    short_updates: int
    num_full: int
    full_updates: int
    batch_size: int
    truncation_steps: int


class _Segment(NamedTuple):
    """Steps of the training part that are a row of a batch."""

    stream: int
    start: int
    stop: int
    before: int  # the segment whose last state it starts from; -1: none


@dataclass
class TorchLstm:
    """What was learned, as a baseline of one target."""

    name: ClassVar[str] = "pytorch"
    noun: ClassVar[str] = "LSTM of PyTorch"
    rank: ClassVar[int] = 9
    target: Target
    z: dict[str, NDArray[np.float64]]  # by the stream's name, [T, O] up to the last target
    learning_rate: float
    label: str = "LSTM of PyTorch"

    def predict(self, stream: Stream, rows: slice) -> Prediction:
        """Predict the target of some rows."""
        z = self.z[stream.name][rows]
        if self.target.num_classes:
            return Prediction(log_softmax(z), z.argmax(axis=1))
        return Prediction(z[:, self.target.output])


def fit_lstm(dataset: Dataset, target: Target, effort: Effort) -> TorchLstm:
    """Try learning rates in short trainings, the best two for the full length, then more seeds.

    Of the trainings of the full length the best one in validation is kept. Raises a `BenchError` if
    none has a finite validation error.
    """

    def train(rate: float, seed: int, updates: int) -> _Training:
        training = _Training(dataset, target, effort, rate, seed, updates)
        training.run()
        return training

    num_short = min(effort.num_short, len(LEARNING_RATES))
    tried = {rate: train(rate, 0, effort.short_updates) for rate in LEARNING_RATES[:num_short]}
    rates = sorted(tried, key=lambda rate: tried[rate].best_loss)[:2] or [LEARNING_RATES[0]]
    finals = [train(rate, 0, effort.full_updates) for rate in rates[: effort.num_full]]
    while len(finals) < effort.num_full:
        best = min(finals, key=lambda each: each.best_loss)
        finals.append(train(best.rate, len(finals), effort.full_updates))
    best = min(finals, key=lambda each: each.best_loss)
    if not np.isfinite(best.best_loss):
        raise BenchError("the validation error of PyTorch's LSTM was never finite")
    return TorchLstm(target, best.outputs(), best.rate)


class _Training:
    """One training."""

    def __init__(
        self,
        dataset: Dataset,
        target: Target,
        effort: Effort,
        rate: float,
        seed: int,
        max_updates: int,
    ) -> None:
        import torch

        if target.metric not in ("rmse", "cross_entropy"):
            raise BenchError(f"PyTorch's LSTM learns no {target.metric} here")
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.torch, self.dataset, self.target, self.effort = torch, dataset, target, effort
        self.rate, self.max_updates = rate, max_updates
        spec = dataset.spec
        width = spec.num_features
        self.embeddings = torch.nn.ModuleDict()
        for k, item in enumerate(spec.inputs):
            if item.embedding_size:
                table = torch.nn.Embedding(item.num_categories, item.embedding_size)
                self.embeddings[str(k)] = table
        width = self._features(np.zeros((1, 1, width), np.float32), self._no_codes()).shape[2]
        self.layers = torch.nn.ModuleList()
        for layer in spec.chain:
            self.layers.append(torch.nn.LSTM(width, layer.hidden_size))
            width = layer.hidden_size
        self.head = torch.nn.Linear(width, spec.output_size)
        modules = (self.embeddings, self.layers, self.head)
        self.parameters = [p for module in modules for p in module.parameters()]
        self.adam = torch.optim.Adam(self.parameters, lr=rate)
        self.rng = np.random.default_rng(seed)
        self.segments = _cut(dataset, effort.batch_size)
        self.num_updates, self.best_loss = 0, np.inf
        self.best = [p.detach().clone() for p in self.parameters]

    def _no_codes(self) -> dict[str, NDArray[np.int64]]:
        named = (item.name for item in self.dataset.spec.inputs if item.embedding_size)
        return {name: np.zeros((1, 1), np.int64) for name in named}

    def _features(self, features: NDArray[np.float32], codes: dict[str, NDArray[np.int64]]) -> Any:
        torch = self.torch
        found = [torch.from_numpy(features)]
        for k, item in enumerate(self.dataset.spec.inputs):
            if item.embedding_size:
                found.append(self.embeddings[str(k)](torch.from_numpy(codes[item.name])))
        return torch.cat(found, dim=2)

    def _forward(self, chunk: Chunk, state: list[Any]) -> tuple[Any, list[Any]]:
        h, after = self._features(chunk.features, chunk.codes), []
        for layer, before in zip(self.layers, state, strict=True):
            h, new = layer(h, before)
            after.append(new)
        return self.head(h), after

    def _zeros(self, num_rows: int) -> list[Any]:
        zeros = self.torch.zeros
        return [
            tuple(zeros(1, num_rows, layer.hidden_size) for _ in range(2)) for layer in self.layers
        ]

    def _loss(self, z: Any, target: NDArray[np.float32]) -> Any:
        torch = self.torch
        truth = torch.from_numpy(target[..., self.target.output])
        known = ~torch.isnan(truth)
        if self.target.num_classes:
            return torch.nn.functional.cross_entropy(z[known], truth[known].long())
        return ((z[..., self.target.output] - truth)[known] ** 2).mean()

    def run(self) -> None:
        """Make the updates, and validate on the way."""
        # One more than there are segments: index -1 is the state of a new stream, never written.
        ends = self._zeros(len(self.segments) + 1)
        while not self.is_done:
            order = self.rng.permutation(len(self.segments))
            for rows in np.array_split(order, -(-len(order) // self.effort.batch_size)):
                before = [self.segments[k].before for k in rows]
                state = [tuple(part[:, before] for part in layer) for layer in ends]
                state = self._run_batch([self.segments[k] for k in rows], state)
                for layer, after in zip(ends, state, strict=True):
                    for part, new in zip(layer, after, strict=True):
                        part[:, rows] = new
        for parameter, best in zip(self.parameters, self.best, strict=True):
            parameter.data.copy_(best)

    @property
    def is_done(self) -> bool:
        """Whether no update is left."""
        return self.num_updates >= self.max_updates

    def _run_batch(self, segments: list[_Segment], state: list[Any]) -> list[Any]:
        """Go through some segments side by side, chunk by chunk; return the state at the end."""
        length = self.effort.truncation_steps
        for start in range(0, max(s.stop - s.start for s in segments), length):
            cut = [
                (s.stream, min(s.start + start, s.stop), min(s.start + start + length, s.stop))
                for s in segments
            ]
            chunk, target = stack_rows(self.dataset.streams, cut)
            if np.isnan(target).all() or self.is_done:
                with self.torch.no_grad():
                    _, state = self._forward(chunk, state)
            else:
                state = self._update(chunk, target, state)
        return state

    def _update(self, chunk: Chunk, target: NDArray[np.float32], state: list[Any]) -> list[Any]:
        z, after = self._forward(chunk, state)
        self.adam.zero_grad()
        self._loss(z, target).backward()
        self.torch.nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        self.adam.step()
        self.num_updates += 1
        every = max(1, self.max_updates // NUM_EVALUATIONS)
        if self.num_updates % every == 0 or self.is_done:
            self._validate()
        return [tuple(part.detach() for part in layer) for layer in after]

    def _validate(self) -> None:
        """Keep the weights if they are the best so far, each stream warmed up by some history."""
        streams = [s for s in self.dataset.streams if s.stops[1] > s.stops[0]]
        cut = [(max(0, s.stops[0] - HISTORY_STEPS), s.stops[0], s.stops[1]) for s in streams]
        z = self._run(streams, [(begin, stop) for begin, _, stop in cut])
        losses, count = 0.0, 0
        for stream, own, (begin, start, stop) in zip(streams, z, cut, strict=True):
            target = stream.target[start:stop]
            num = int(np.count_nonzero(~np.isnan(target[:, self.target.output])))
            if num:
                found = self.torch.from_numpy(own[start - begin :])
                losses, count = losses + num * float(self._loss(found, target)), count + num
        if losses / count < self.best_loss:
            self.best_loss = losses / count
            self.best = [p.detach().clone() for p in self.parameters]

    def outputs(self) -> dict[str, NDArray[np.float64]]:
        """Run every stream from its first row to its last target."""
        streams = list(self.dataset.streams)
        z = self._run(streams, [(0, stream.stops[2]) for stream in streams])
        return {stream.name: own for stream, own in zip(streams, z, strict=True)}

    def _run(self, streams: list[Stream], rows: list[tuple[int, int]]) -> list[NDArray[np.float64]]:
        """Run rows of some streams, each from a new state; return [T, O] of each."""
        cut = [(k, *own) for k, own in enumerate(rows)]
        chunk, _ = stack_rows(tuple(streams), cut)
        with self.torch.no_grad():
            z = self._forward(chunk, self._zeros(len(streams)))[0].numpy().astype(np.float64)
        return [z[: stop - start, b] for b, start, stop in cut]


def _cut(dataset: Dataset, batch_size: int) -> list[_Segment]:
    """Cut the training part of every stream, so that one long one fills a batch."""
    num_steps = sum(stream.stops[0] for stream in dataset.streams)
    length = max(1, -(-num_steps // batch_size))
    segments: list[_Segment] = []
    for k, stream in enumerate(dataset.streams):
        for start in range(0, stream.stops[0], length):
            before = len(segments) - 1 if start else -1
            segments.append(_Segment(k, start, min(start + length, stream.stops[0]), before))
    return segments
