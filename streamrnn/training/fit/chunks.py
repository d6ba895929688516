"""What is trained at once: segments of streams, batches of segments, chunks of batches.

Every stream's training part is cut into contiguous segments, so that a single long series fills a
batch too. A batch is gone through in chunks of ``truncation_steps``, after each of which the
gradient is cut (Williams and Peng 1990). Where that is no shorter than the batch, there is one
chunk: full backpropagation through time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import counted
from streamrnn.training.data.dataset import Dataset, Stream
from streamrnn.training.data.stacking import stack_rows
from streamrnn.training.evaluate import cut_pieces
from streamrnn.training.network.layers import Array
from streamrnn.training.network.network import Chunk

__all__ = [
    "Piece", "Segment", "Sizes", "choose_sizes", "cut_chunks", "cut_segments", "plan_epoch",
]  # fmt: skip

Index = NDArray[np.int64]

# An unset truncation is this. Streams of up to twice as many steps are taken whole, and longer ones
# whose last row alone counts.
TRUNCATION_STEPS = 64
MAX_WHOLE_STEPS = 512
# An unset batch size aims at so many updates an epoch, within these bounds where there are rows.
UPDATES_AN_EPOCH = 16
MIN_BATCH, MAX_BATCH = 4, 64
# An unset number of updates aims at so many epochs, within these bounds.
NUM_EPOCHS = 20
MIN_UPDATES, MAX_UPDATES = 2_000, 20_000
# How often a training whose length is in updates is validated, at most.
NUM_EVALUATIONS = 50
# The share of a training that validations may take: they are fewer where one is long. A row of one
# counts as less than half a row of an update, which goes back too and changes the weights; so few
# rows take no time that anybody would notice.
VALIDATION_SHARE, VALIDATION_ROW, SHORT_VALIDATION = 0.15, 0.4, 2048
# The share of the evaluations, and no fewer, that may go by without a better one.
PATIENCE, MIN_PATIENCE = 0.4, 10


@dataclass(frozen=True)
class Sizes:
    """How much is trained at once, and for how long."""

    batch_size: int  # B
    segment_steps: int
    truncation_steps: int
    updates_an_epoch: int  # about; chunks are drawn, and some hold no target
    updates: int  # at most; 0: the epochs are the bound
    epochs: int  # at most; 0: the updates are the bound
    evaluate_every: (
        int  # updates; where the epochs are the bound, at the ends of such that far apart
    )
    patience: int  # evaluations

    @property
    def num_epochs(self) -> float:
        """Epochs at most, or about so many."""
        of_updates = self.updates / self.updates_an_epoch
        return min(bound for bound in (of_updates, self.epochs) if bound)

    def describe(self) -> str:
        """Tell it in a sentence."""
        length = (
            f"{counted(self.epochs, 'epoch')} of about {counted(self.updates_an_epoch, 'update')}"
        )
        num_updates = self.updates or self.epochs * self.updates_an_epoch
        every = "after each of them"
        if self.evaluate_every > self.updates_an_epoch:
            every = f"at ends that are {counted(self.evaluate_every, 'update')} apart or more"
        if self.updates:
            shown = ".3g" if self.num_epochs < 100 else ",.0f"
            about = f"{self.num_epochs:{shown}}"
            length = f"{counted(self.updates, 'update')}, about {about} epoch{'s' * (about != '1')}"
            every = f"every {self.evaluate_every:,}" if self.evaluate_every > 1 else "after each"
        if num_updates > 1 and 2 * self.evaluate_every > num_updates:
            every = "once, at the end"
        rows = (
            f"{counted(self.batch_size, 'segment')} of {counted(self.segment_steps, 'step')} "
            "side by side"
        )
        if self.batch_size == 1:
            rows = f"segments of {counted(self.segment_steps, 'step')}, one at a time"
        return (
            f"training: {rows}, "
            f"gradients over {counted(self.truncation_steps, 'step')}; at most {length}, validated "
            f"{every}, to the end or {counted(self.patience, 'time')} without a better error"
        )


@dataclass(frozen=True)
class Segment:
    """Rows of one stream that are trained as one row of a batch."""

    stream: int  # index of the stream
    start: int
    stop: int
    before: int  # index of the segment whose last state it starts from; -1 for a stream's first


class Piece(NamedTuple):
    """A chunk of a batch: what one update is made from."""

    rows: Index  # [B], the batch's segments by index
    start: int  # steps, counted from the beginning of the segments
    stop: int
    is_last: bool  # of its batch

    def stacked(self, dataset: Dataset, segments: list[Segment]) -> tuple[Chunk, Array]:
        """Put its rows side by side: a chunk [T, B, ...] and targets, NaN where a row has ended."""
        cut = []
        for segment in (segments[k] for k in self.rows):
            start, stop = segment.start + self.start, segment.start + self.stop
            cut.append((segment.stream, min(start, segment.stop), min(stop, segment.stop)))
        return stack_rows(dataset.streams, cut)


def choose_sizes(dataset: Dataset) -> Sizes:
    """Choose from the streams' lengths what the configuration leaves open.

    Segments are so long that one long stream fills a batch, but no shorter than the truncation.
    """
    config = dataset.config
    lengths = [stream.stops[0] for stream in dataset.streams]
    num_steps, longest = sum(lengths), max(lengths)
    most_whole = MAX_WHOLE_STEPS if config.loss_on == "last" else 2 * TRUNCATION_STEPS
    usual = longest if longest <= most_whole else TRUNCATION_STEPS
    truncation_steps = config.truncation_steps or usual
    rows = min(MAX_BATCH, max(MIN_BATCH, num_steps // (UPDATES_AN_EPOCH * truncation_steps)))
    batch_size = config.batch_size or max(1, min(rows, num_steps // truncation_steps))
    segment_steps = max(1, -(-num_steps // batch_size))
    num_segments = sum(-(-length // segment_steps) for length in lengths)
    num_batches = -(-num_segments // batch_size)
    an_epoch = max(1, num_batches * -(-min(segment_steps, longest) // truncation_steps))
    updates = config.updates
    if not updates and not config.epochs:
        updates = min(MAX_UPDATES, max(MIN_UPDATES, NUM_EPOCHS * an_epoch))
    apart = _least_apart(dataset.streams, num_steps / an_epoch)
    if updates:
        num_evaluations = max(1, min(NUM_EVALUATIONS, updates // apart))
        evaluate_every = -(-updates // num_evaluations)
    else:
        num_evaluations = config.epochs // -(-apart // an_epoch)
        evaluate_every = apart if apart > an_epoch else 0
    return Sizes(
        batch_size,
        segment_steps,
        truncation_steps,
        an_epoch,
        updates,
        config.epochs,
        evaluate_every,
        config.patience or max(MIN_PATIENCE, round(PATIENCE * num_evaluations)),
    )


def _least_apart(streams: Sequence[Stream], rows_an_update: float) -> int:
    """Return how many updates lie between two validations, so that these take their share."""
    pieces = [cut_pieces(slice(*stream.stops[:2])) for stream in streams]
    num_rows = sum(stop - begin for own in pieces for begin, _, stop in own)
    if num_rows <= SHORT_VALIDATION:
        return 1
    updates = VALIDATION_ROW * num_rows / rows_an_update  # that take as long as one of them
    return max(1, math.ceil(updates * (1.0 / VALIDATION_SHARE - 1.0)))


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


def plan_epoch(
    segments: list[Segment], truncation_steps: int, batch_size: int, rng: np.random.Generator
) -> list[Piece]:
    """Draw the pieces of an epoch, in their order."""
    lengths = np.array([segment.stop - segment.start for segment in segments])
    pieces = []
    for rows in _batches(lengths, batch_size, rng):
        num_steps = int(lengths[rows].max())
        for start, stop in cut_chunks(num_steps, truncation_steps, rng):
            pieces.append(Piece(rows, start, stop, stop == num_steps))
    return pieces


def _batches(lengths: Index, batch_size: int, rng: np.random.Generator) -> list[Index]:
    """Return the segments of each batch: alike in length, in random order."""
    order = rng.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    batches = np.array_split(order, -(-len(order) // batch_size))
    # What is left over, a few steps of one stream, makes no update of its own.
    if len(batches) > 1 and 2 * lengths[batches[-1]].sum() < lengths[batches[-2]].sum():
        batches[-2:] = [np.concatenate(batches[-2:])]
    return [batches[k] for k in rng.permutation(len(batches))]


def cut_chunks(num_steps: int, length: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Cut a batch's steps into chunks of `length`, or of at least half of it at the ends.

    The first one's length is drawn, so that the gradient is not cut at the same rows every epoch.
    """
    if num_steps <= length:
        return [(0, num_steps)]
    first = int(rng.integers((length + 1) // 2, length + 1))
    stops = [0, *range(first, num_steps, length), num_steps]
    if 2 * (num_steps - stops[-2]) < length:  # too short: it shares the steps of the one before
        stops[-2] = (stops[-3] + num_steps) // 2
    return list(pairwise(stops))
