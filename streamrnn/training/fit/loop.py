"""Training loop: epochs over segments of streams, and the choice of the weights.

Every stream's training part is cut into contiguous segments, so that a single long series fills a
batch too. A segment is gone through in chunks of ``truncation_steps``; its state is carried from
chunk to chunk (Williams and Peng 1990) and from segment to segment: a segment starts from the state
that the segment before it ended with one epoch earlier, which is stale by one epoch's updates but
of the right place in the stream. The first chunk's length changes from epoch to epoch, so that the
gradient is not always cut at the same rows.

The weights that are validated, and kept, are a moving average (Polyak and Juditsky 1992).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import TrainingError
from streamrnn.training.data.dataset import Dataset, Stream
from streamrnn.training.data.stacking import stack_rows
from streamrnn.training.evaluate import mean_loss
from streamrnn.training.fit.optimisers import Adam, clip_by_global_norm, cosine_rate
from streamrnn.training.network.layers import Array, State
from streamrnn.training.network.network import Chunk, Network, flat_views, initial_parameters

__all__ = ["Epoch", "Fit", "Segment", "choose_sizes", "cut_segments", "fit"]

# An unset batch size aims at segments of this many steps, within 1 and MAX_BATCH rows.
STEPS_A_SEGMENT = 192
MAX_BATCH = 64
# An unset number of epochs aims at this many updates, within these bounds.
NUM_UPDATES = 20_000
MIN_EPOCHS, MAX_EPOCHS = 20, 200


@dataclass(frozen=True)
class Segment:
    """Rows of one stream that are trained as one row of a batch."""

    stream: int  # index of the stream
    start: int
    stop: int
    before: int  # index of the segment whose last state it starts from; -1 for a stream's first


@dataclass(frozen=True)
class Epoch:
    """Losses of an epoch in network units, for a progress display."""

    epoch: int  # from 1
    num_epochs: int  # at most
    train: float  # mean over the epoch's chunks
    validation: float  # of the validation part, now
    best: float  # smallest `validation` so far


@dataclass
class Fit:
    """Result of the training loop."""

    network: Network  # with the best weights
    best_epoch: int = 0  # from 1
    num_epochs: int = 0
    num_updates: int = 0
    clipped_share: float = 0.0  # share of the updates whose gradient was clipped
    max_gradient_norm: float = 0.0  # before clipping
    history: list[Epoch] = field(default_factory=list)


def choose_sizes(dataset: Dataset) -> tuple[int, int, int]:
    """Return batch size B, segment length and the most epochs.

    What the configuration sets is kept; segments are so long that one long stream fills a batch.
    """
    config = dataset.config
    num_steps = sum(stream.stops[0] for stream in dataset.streams)
    batch_size = config.batch_size or min(MAX_BATCH, max(1, round(num_steps / STEPS_A_SEGMENT)))
    segment_steps = max(1, -(-num_steps // batch_size))
    longest = min(segment_steps, max(stream.stops[0] for stream in dataset.streams))
    rows = sum(-(-stream.stops[0] // segment_steps) for stream in dataset.streams)
    updates = -(-rows // batch_size) * (-(-longest // config.truncation_steps))
    epochs = config.epochs or min(MAX_EPOCHS, max(MIN_EPOCHS, NUM_UPDATES // max(updates, 1)))
    return batch_size, segment_steps, epochs


def cut_segments(streams: tuple[Stream, ...], segment_steps: int) -> list[Segment]:
    """Cut the training part of every stream into segments of `segment_steps` or fewer."""
    segments: list[Segment] = []
    for k, stream in enumerate(streams):
        before = -1
        for start in range(0, stream.stops[0], segment_steps):
            stop = min(start + segment_steps, stream.stops[0])
            segments.append(Segment(k, start, stop, before))
            before = len(segments) - 1
    return segments


def fit(dataset: Dataset, progress: Callable[[Epoch], None] | None = None) -> Fit:
    """Train a network, repeatable by its seed; raise `TrainingError` if it diverges."""
    config = dataset.config
    rng = np.random.default_rng(config.seed)
    batch_size, segment_steps, num_epochs = choose_sizes(dataset)
    segments = cut_segments(dataset.streams, segment_steps)
    network = Network(dataset.spec, initial_parameters(dataset.spec, rng))
    trainer = _Trainer(dataset, network, segments, num_epochs)
    result = Fit(network)
    best_loss, best_weights = np.inf, network.flat.copy()
    for epoch in range(num_epochs):
        try:
            # An overflow shows in the loss or the gradient, and is reported from there.
            with np.errstate(over="ignore", invalid="ignore"):
                train_loss = trainer.run_epoch(epoch, rng, batch_size)
                with trainer.averaged():
                    validation_loss = mean_loss(network, dataset, "validation")
                    if validation_loss < best_loss:
                        best_loss, best_weights[:] = validation_loss, network.flat
                        result.best_epoch = epoch + 1
        except TrainingError as error:
            raise TrainingError(f"in epoch {epoch + 1} of {num_epochs}: {error}") from error
        result.history.append(Epoch(epoch + 1, num_epochs, train_loss, validation_loss, best_loss))
        if progress:
            progress(result.history[-1])
        if epoch + 1 - result.best_epoch >= config.patience:
            break
    if not np.isfinite(best_loss):
        raise TrainingError(
            "the validation error was never finite: training diverged. Lower learning_rate (to a "
            "third) or clip_norm"
        )
    network.flat[:] = best_weights
    result.num_epochs, result.num_updates = len(result.history), trainer.adam.num_updates
    result.clipped_share = trainer.num_clipped / max(result.num_updates, 1)
    result.max_gradient_norm = trainer.max_norm
    return result


class _Trainer:
    """Weights, optimiser, average and carried states, over the epochs."""

    def __init__(
        self, dataset: Dataset, network: Network, segments: list[Segment], num_epochs: int
    ) -> None:
        self.dataset, self.network, self.segments = dataset, network, segments
        self.num_epochs = num_epochs
        self.adam = Adam(network.flat.size, network.dtype)
        self.average = network.flat.copy()
        self.num_clipped, self.max_norm = 0, 0.0
        self.lengths = np.array([segment.stop - segment.start for segment in segments])
        # One more than there are segments: index -1 is the state of a new stream, never written.
        self.ends = network.initial_state(len(segments) + 1)
        self.decay: Array | float = 0.0
        if dataset.config.weight_decay:
            self.decay, views = flat_views(dataset.spec, network.dtype)
            for name, view in views.items():
                view[...] = 0.0 if "bias" in name else dataset.config.weight_decay

    def run_epoch(self, epoch: int, rng: np.random.Generator, batch_size: int) -> float:
        """Go through all segments once; return the mean loss of the chunks."""
        config = self.dataset.config
        losses = []
        batches = list(self._batches(rng, batch_size))
        for k, batch in enumerate(batches):
            chosen = [self.segments[s] for s in batch]
            before = [segment.before for segment in chosen]
            state: list[State] = [tuple(s[before] for s in layer) for layer in self.ends]
            chunk, target = stack_rows(
                self.dataset.streams, [(s.stream, s.start, s.stop) for s in chosen]
            )
            num_steps, length = len(target), config.truncation_steps
            first = int(rng.integers((length + 1) // 2, length + 1))
            start, stop = 0, min(first, num_steps)
            while start < num_steps:
                progress = (epoch + (k + start / num_steps) / len(batches)) / self.num_epochs
                part = slice(start, stop)
                codes = {name: code[part] for name, code in chunk.codes.items()}
                value, state = self.network.loss(
                    Chunk(chunk.features[part], codes), target[part], state, config.loss
                )
                losses.append(value)
                self._update(progress)
                start, stop = stop, min(stop + length, num_steps)
            for layer, after in zip(self.ends, state, strict=True):
                for end, new in zip(layer, after, strict=True):
                    end[batch] = new
        return float(np.mean(losses))

    def _batches(self, rng: np.random.Generator, batch_size: int) -> Iterator[NDArray[np.int64]]:
        """Yield the segments of each batch: alike in length, in random order."""
        order = rng.permutation(len(self.segments))
        order = order[np.argsort(-self.lengths[order], kind="stable")]
        num_batches = -(-len(order) // batch_size)
        for k in rng.permutation(num_batches):
            yield order[k * batch_size : (k + 1) * batch_size]

    def _update(self, progress: float) -> None:
        """Change the weights by the gradient that the network holds."""
        config, network = self.dataset.config, self.network
        norm, clipped = clip_by_global_norm(network.gradient, config.clip_norm)
        self.num_clipped += clipped
        self.max_norm = max(self.max_norm, norm)
        rate = config.learning_rate
        if config.schedule == "cosine":
            rate = cosine_rate(rate, progress)
        self.adam.update(network.flat, network.gradient, rate, self.decay)
        # At first the average is that of all weights so far, so that it forgets the start.
        weight = max(1.0 - config.averaging, 1.0 / (1.0 + self.adam.num_updates / 10.0))
        self.average += np.float32(weight) * (network.flat - self.average)

    def averaged(self) -> _Swapped:
        """Put the average into the network until the end of a block."""
        return _Swapped(self.network, self.average)


class _Swapped:
    """Other weights in a network until the end of a block."""

    def __init__(self, network: Network, weights: Array) -> None:
        self.network, self.weights = network, weights

    def __enter__(self) -> None:
        self.own = self.network.flat.copy()
        self.network.flat[:] = self.weights

    def __exit__(self, *error: object) -> None:
        self.network.flat[:] = self.own
