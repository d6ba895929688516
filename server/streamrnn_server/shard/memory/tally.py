"""What a shard counts of requests and batches, in memory that it alone writes.

Python reads it as it reads the counters: single words, which may be of different moments.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from streamrnn.kernels.jit import jit
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.structs import I64, Struct
from streamrnn_client.protocol import ErrorCode

__all__ = [
    "BATCH_BUCKETS",
    "BUCKETS_LOG2",
    "NUM_BUCKETS",
    "NUM_CODES",
    "NUM_SAMPLES",
    "TALLY_BYTES",
    "BatchTally",
    "Samples",
    "Tally",
    "count_batch",
    "note_time",
    "sample_rows",
    "tally_at",
]

# Times: eight buckets for each doubling of nanoseconds.
BUCKETS_LOG2 = 3
NUM_BUCKETS = 64 << BUCKETS_LOG2
NUM_CODES = max(ErrorCode) + 1
BATCH_BUCKETS = 16  # batches of 1 row, of 2, of up to 4, 8, ...
NUM_SAMPLES = 1024  # a power of two
_DISTANCE_LOG2 = 5  # from one sampled row to the next: 1 to so many, as a power of two
_MULTIPLIER, _INCREMENT = 6364136223846793005, 1442695040888963407  # Knuth's MMIX


class Tally(Struct):
    """What became of the requests of one kind, for one model."""

    sum_ns: I64  # of the times from receive to send
    errors: Annotated[Any, np.int64, (NUM_CODES,)]  # by code, those of batches' items among them
    times: Annotated[Any, np.int64, (NUM_BUCKETS,)]


class BatchTally(Struct):
    """The batches of one model."""

    num_steps: I64
    num_rows: I64
    sizes: Annotated[Any, np.int64, (BATCH_BUCKETS,)]


class Samples(Struct):
    """Slots of rows that were stepped of late, drawn at random: who is at work."""

    slots: Annotated[Any, np.int32, (NUM_SAMPLES,)]
    number: I64  # drawn so far
    rows_until_next: I64
    random: I64


TALLY_BYTES = Tally.dtype.itemsize
tally_at = pointer_to(Tally)


@intrinsic
def _floor_log2(typingctx: Any, value: types.Type) -> Any:
    """Return the position of the highest bit of a positive int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        width = ir.IntType(64)
        leading = builder.ctlz(args[0], ir.IntType(1)(1))
        return builder.sub(width(63), leading)

    return types.int64(types.int64), codegen


@jit
def note_time(tally: Tally, passed_ns: int) -> None:
    """Count a time in its bucket: eight for each doubling."""
    doublings = max(_floor_log2(passed_ns | 1) - BUCKETS_LOG2, 0)
    bucket = (doublings << BUCKETS_LOG2) + (passed_ns >> doublings)
    tally.times[bucket] += 1
    tally.sum_ns += passed_ns


@jit
def count_batch(tally: BatchTally, num_rows: int) -> None:
    """Count a batch of at least one row; its steps are counted by the caller."""
    tally.num_rows += num_rows
    tally.sizes[min(_floor_log2(2 * num_rows - 1), BATCH_BUCKETS - 1)] += 1


@jit
def sample_rows(samples: Samples, slots: Any, num_rows: int) -> None:
    """Note the slots of some of a batch's rows, at random distances.

    At a regular one, streams that step in turn would be sampled in turn, or not at all.
    """
    row = samples.rows_until_next
    while row < num_rows:
        samples.slots[samples.number & (NUM_SAMPLES - 1)] = slots[row]
        samples.number += 1
        samples.random = samples.random * _MULTIPLIER + _INCREMENT
        row += 1 + ((samples.random >> 40) & ((1 << _DISTANCE_LOG2) - 1))
    samples.rows_until_next = row - num_rows
