"""Recordings: a stream's row once, then its inputs without a gap, for Python to look at.

The shard's thread writes them, Python reads. Each word has one writer at a time: an empty
recording is the shard's, which begins it, writes and ends it; one that has ended is Python's, which
makes it empty. Python may read one that is going too, up to a number of steps that it has seen
before. The shard may begin one that is going anew, with a stream that was asked for: then its
serial number, which is written first, differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Any

import numpy as np

from streamrnn.kernels.jit import jit
from streamrnn.kernels.pointers import pointer_to
from streamrnn.kernels.structs import I64, Struct
from streamrnn.kernels.virtual_memory import address_of, reserve
from streamrnn.model.parameters import parameter_shapes
from streamrnn.model.spec import ModelSpec
from streamrnn_client.protocol import MAX_ID_BYTES

__all__ = [
    "FOR_SHADOW",
    "MAX_RECORDINGS",
    "Recorder",
    "RecorderStruct",
    "Recording",
    "RecordingEnd",
    "RecordingState",
    "most_steps",
    "recording_of",
]

MAX_RECORDINGS = 64  # of a shard
FOR_SHADOW = -1  # who has asked, where no user has: `streamrnn_server.live.shadow`
_INPUT_BYTES = 2**18  # of a recording
_LEAST_STEPS, _FEW_STEPS, _MOST_STEPS = 8, 256, 4096
_MAX_ROW_BYTES = 2**18
_MAX_PARAMETERS = 2**22


class RecordingState(IntEnum):
    """Who has a recording."""

    EMPTY = 0  # the shard may begin it
    GOING = 1
    ENDED = 2  # Python makes it empty


class RecordingEnd(IntEnum):
    """Why a recording has ended."""

    NONE = 0
    FULL = 1
    CLOSED = 2
    EVICTED = 3
    RESET = 4
    ROLLED_BACK = 5
    QUARANTINED = 6  # the last step is the one after which the state was NaN
    GAP = 7
    DROPPED = 8  # Python has asked
    SWAPPED = 9  # to another version of its model


class Recording(Struct):
    """A recording of one stream."""

    state: I64  # a `RecordingState`
    serial: I64  # of all that the shard has begun, from 1
    slot: I64
    generation: I64  # with the slot, which stream it is
    model: I64
    first_seq: I64  # the stream's last step before it; 0 if it is not numbered
    num_steps: I64  # recorded
    max_steps: I64
    ended_as: I64  # a `RecordingEnd`
    is_asked: I64  # somebody has asked for this stream
    asker: I64  # who: the number of a user, 0 where there are none; or `FOR_SHADOW`
    is_unwanted: I64  # Python's word that it is to end; it counts as an order
    row: I64  # address of the stream's row before the first step
    inputs: I64  # address of the steps' inputs
    step_bytes: I64
    row_bytes: I64
    id_bytes: I64
    id: Annotated[Any, np.uint8, (136,)]  # canonical


class RecorderStruct(Struct):
    """The recordings of a shard."""

    recordings: I64  # address of them
    number: I64  # how many
    num_begun: I64
    orders: I64  # counted by Python: a recording was made empty, or is unwanted
    orders_seen: I64
    wanted: (
        I64  # Python's word: number of the model whose streams alone are recorded, from 1; 0 any
    )


RECORDING_BYTES = Recording.dtype.itemsize
_recording_at = pointer_to(Recording)
assert MAX_ID_BYTES < 136


@jit
def recording_of(recorder: RecorderStruct, number: int) -> Recording:
    """Return a recording by its number, from 1."""
    return _recording_at(recorder.recordings + (number - 1) * RECORDING_BYTES)


def most_steps(spec: ModelSpec, row_bytes: int) -> int:
    """Return how many steps of a stream are recorded; 0: the model is too large for it."""
    num_parameters = sum(math.prod(shape) for shape in parameter_shapes(spec).values())
    is_small = row_bytes <= _MAX_ROW_BYTES and num_parameters <= _MAX_PARAMETERS
    most = min(_INPUT_BYTES // (4 * spec.num_inputs), _MOST_STEPS)
    most = min(most, max(2 * spec.warmup_steps, _FEW_STEPS))
    return most if is_small and most >= _LEAST_STEPS else 0


class Recorder:
    """The memory of a shard's recordings.

    Parameters
    ----------
    number : int
        How many streams can be recorded at once.
    row_bytes : sequence of int
        Of the models.
    struct : RecorderStruct
        Filled.

    Attributes
    ----------
    table : ndarray of Recording, shape (number,)
    max_row_bytes : int
        Streams with larger rows are not recorded.
    """

    def __init__(self, number: int, row_bytes: Sequence[int], struct: Any) -> None:
        self._struct = struct
        largest = max((each for each in row_bytes if each <= _MAX_ROW_BYTES), default=0)
        self.max_row_bytes = largest if number else 0
        stride = largest + _INPUT_BYTES
        self.table = np.zeros(number, Recording.dtype)
        self._memory = reserve(max(number * stride, 1))
        at = address_of(self._memory) + stride * np.arange(number)
        self.table["row"], self.table["inputs"] = at, at + largest
        struct["recordings"], struct["number"] = address_of(self.table), number

    def order(self) -> None:
        """Let the shard look at what was made empty or is unwanted."""
        self._struct["orders"] += 1

    def want(self, model: int | None) -> None:
        """Let streams of one model be recorded before all others, for `FOR_SHADOW`; None: of any.

        It counts from the next `order` on.
        """
        self._struct["wanted"] = 0 if model is None else model + 1

    def part(self, address: int, num_bytes: int) -> bytes:
        """Return a copy of bytes of a recording's memory."""
        begin = address - address_of(self._memory)
        return self._memory[begin : begin + num_bytes].tobytes()
