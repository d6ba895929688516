"""What a shard records of a few streams: the row before a step, then each step's input.

Whatever changes a stream but a step ends its recording.
"""

from __future__ import annotations

from typing import Any

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes
from streamrnn.kernels.pointers import field_address
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.recording import (
    RecordingEnd,
    RecordingState,
    recording_of,
)
from streamrnn_server.shard.memory.slab import header_of, model_of, row_of, slot_of
from streamrnn_server.shard.requests.request import Request
from streamrnn_server.shard.structs import Shard

__all__ = ["begin_recordings", "end_recording", "find_recording", "record_step"]

_LOW_31 = 0x7FFFFFFF  # of a generation, which may wrap


@jit
def record_step(shard: Shard, header: Header, x: int) -> None:
    """Record a step that a stream has just taken, whose input lies at ``x``."""
    recording = recording_of(shard.recorder, header.recording)
    number, seq = recording.num_steps, header.last_seq
    if seq != 0 and seq != recording.first_seq + number + 1:
        end_recording(shard, header, RecordingEnd.GAP)
        return
    num_bytes = recording.step_bytes
    copy_bytes(recording.inputs + number * num_bytes, x, num_bytes)
    recording.num_steps = number + 1
    if number + 1 == recording.max_steps:
        end_recording(shard, header, RecordingEnd.FULL)


@jit
def end_recording(shard: Shard, header: Header, why: int) -> None:
    """End a stream's recording, if there is one."""
    if header.recording == 0:
        return
    recording = recording_of(shard.recorder, header.recording)
    header.recording = 0
    recording.ended_as = why
    recording.state = RecordingState.ENDED


@jit
def begin_recordings(shard: Shard, slots: Any, num_rows: int) -> None:
    """Begin the recordings that are empty, with streams of a batch before its step.

    ``slots`` is an array of its slots. Nothing is done unless Python has given an order since.
    """
    recorder = shard.recorder
    if recorder.orders == recorder.orders_seen:
        return
    recorder.orders_seen = recorder.orders
    _end_unwanted(shard)
    row = shard.now_ns % num_rows
    for _ in range(num_rows):
        header = header_of(shard, slots[row])
        if header.recording == 0 and model_of(shard, header.model).recorded_steps > 0:
            number = _find(shard, RecordingState.EMPTY)
            if number == 0:
                return
            _begin(shard, header, number)
        row += 1
        if row == num_rows:
            row = 0


@jit
def find_recording(shard: Shard, header: Header, request: Request) -> None:
    """Answer whose recording is asked for: slot, generation, number; begin one if there is none.

    The number is 0 without a place: recordings that were asked for go on, others make way.
    """
    is_steady = header.flags & h.IS_QUARANTINED == 0
    can_be = model_of(shard, header.model).recorded_steps > 0
    if header.recording == 0 and is_steady and can_be:
        number = _find(shard, RecordingState.EMPTY)
        if number == 0:
            number = _find(shard, RecordingState.GOING)
            if number > 0:  # not ended before: what has ended is Python's
                header_of(shard, recording_of(shard.recorder, number).slot).recording = 0
        if number > 0:
            _begin(shard, header, number)
    number = header.recording
    if number != 0:
        recording_of(shard.recorder, number).is_asked = 1
    request.last_seq = slot_of(shard, header)
    request.window = header.generation & _LOW_31
    request.oldest_output = number


@jit
def _find(shard: Shard, state: int) -> int:
    """Return the number of a recording in a state that nobody has asked for; 0 if there is none."""
    recorder = shard.recorder
    for number in range(1, recorder.number + 1):
        recording = recording_of(recorder, number)
        is_asked = recording.is_asked != 0 and state != RecordingState.EMPTY
        if recording.state == state and not is_asked:
            return number
    return 0


@jit
def _end_unwanted(shard: Shard) -> None:
    recorder = shard.recorder
    for number in range(1, recorder.number + 1):
        recording = recording_of(recorder, number)
        if recording.state == RecordingState.GOING and recording.is_unwanted != 0:
            end_recording(shard, header_of(shard, recording.slot), RecordingEnd.DROPPED)


@jit
def _begin(shard: Shard, header: Header, number: int) -> None:
    recorder, model, slot = shard.recorder, model_of(shard, header.model), slot_of(shard, header)
    recording = recording_of(recorder, number)
    recorder.num_begun += 1
    recording.serial = recorder.num_begun  # first: then Python sees that all else may be another's
    recording.num_steps = 0
    recording.slot, recording.generation = slot, header.generation & _LOW_31
    recording.model = header.model
    recording.first_seq = header.last_seq
    recording.max_steps = model.recorded_steps
    recording.ended_as = RecordingEnd.NONE
    recording.is_asked = recording.is_unwanted = 0
    recording.step_bytes, recording.row_bytes = model.step_bytes, model.row_bytes
    recording.id_bytes = h.id_size(header)
    copy_bytes(field_address(recording, "id"), h.id_address(header), h.id_size(header))
    copy_bytes(recording.row, row_of(model, slot), model.row_bytes)
    recording.state = RecordingState.GOING
    header.recording = number
