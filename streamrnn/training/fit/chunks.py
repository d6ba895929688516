"""What is trained at once: segments of streams, batches of segments, chunks of batches.

Every stream's training part is cut into contiguous segments, so that a single long series fills a
batch too. A batch is gone through in chunks of ``truncation_steps``, after each of which the
gradient is cut (Williams and Peng 1990). Where that is no shorter than the batch, there is one
chunk: full backpropagation through time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.dataset import Dataset, Stream
from streamrnn.training.data.stacking import stack_rows
from streamrnn.training.network.layers import Array
from streamrnn.training.network.network import Chunk

__all__ = ["Piece", "Segment", "choose_sizes", "cut_chunks", "cut_segments", "plan_epoch"]

Index = NDArray[np.int64]

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


def choose_sizes(dataset: Dataset) -> tuple[int, int, int]:
    """Return batch size B, segment length and the most epochs.

    What the configuration sets is kept; segments are so long that one long stream fills a batch. A
    batch size that is not set leaves them no shorter than ``truncation_steps``.
    """
    config = dataset.config
    truncation_steps = config.truncation_steps
    num_steps = sum(stream.stops[0] for stream in dataset.streams)
    rows = min(MAX_BATCH, round(num_steps / STEPS_A_SEGMENT), num_steps // truncation_steps)
    batch_size = config.batch_size or max(1, rows)
    segment_steps = max(1, -(-num_steps // batch_size))
    longest = min(segment_steps, max(stream.stops[0] for stream in dataset.streams))
    num_segments = sum(-(-stream.stops[0] // segment_steps) for stream in dataset.streams)
    updates = -(-num_segments // batch_size) * (-(-longest // truncation_steps))
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


def plan_epoch(
    segments: list[Segment], config: TrainingConfig, batch_size: int, rng: np.random.Generator
) -> list[Piece]:
    """Draw the pieces of an epoch, in their order."""
    lengths = np.array([segment.stop - segment.start for segment in segments])
    pieces = []
    for rows in _batches(lengths, batch_size, rng):
        num_steps = int(lengths[rows].max())
        for start, stop in cut_chunks(num_steps, config.truncation_steps, rng):
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
