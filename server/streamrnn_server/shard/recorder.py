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
    FOR_SHADOW,
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
    """Begin recordings with streams of a batch before its step.

    ``slots`` is an array of its slots, all of one model. Nothing is done unless Python has given an
    order since. Where it wants one model's streams, the order waits until they have all places.
    """
    recorder = shard.recorder
    if recorder.orders == recorder.orders_seen:
        return
    is_wanted = recorder.wanted != 0
    if is_wanted and header_of(shard, slots[0]).model != recorder.wanted - 1:
        return
    if not is_wanted:
        recorder.orders_seen = recorder.orders
    _end_unwanted(shard)
    row = shard.now_ns % num_rows
    for _ in range(num_rows):
        header = header_of(shard, slots[row])
        if header.recording == 0 and model_of(shard, header.model).recorded_steps > 0:
            number = _find_place(shard, FOR_SHADOW) if is_wanted else _find_empty(shard)
            if number == 0:
                recorder.orders_seen = recorder.orders
                return
            _begin(shard, header, number)
            if is_wanted:
                _ask_for(shard, number, FOR_SHADOW)
        row += 1
        if row == num_rows:
            row = 0


@jit
def find_recording(shard: Shard, header: Header, request: Request) -> None:
    """Answer whose recording is asked for: slot, generation, number; begin one if there is none.

    The number is 0 without a place.
    """
    is_steady = header.flags & h.IS_QUARANTINED == 0
    can_be = model_of(shard, header.model).recorded_steps > 0
    if header.recording == 0 and is_steady and can_be:
        number = _find_place(shard, request.owner)
        if number > 0:
            _begin(shard, header, number)
    number = header.recording
    if number != 0:
        _ask_for(shard, number, request.owner)
    request.last_seq = slot_of(shard, header)
    request.window = header.generation & _LOW_31
    request.oldest_output = number


@jit
def _ask_for(shard: Shard, number: int, asker: int) -> None:
    recording = recording_of(shard.recorder, number)
    recording.is_asked, recording.asker = 1, asker


@jit
def _find_empty(shard: Shard) -> int:
    """Return the number of an empty recording; 0 if there is none."""
    recorder = shard.recorder
    for number in range(1, recorder.number + 1):
        if recording_of(recorder, number).state == RecordingState.EMPTY:
            return number
    return 0


@jit
def _find_place(shard: Shard, asker: int) -> int:
    """Return the number of a recording for who asks, 0 if there is none; it is nobody's any more.

    An empty one; or one that nobody has asked for; or one of who would have more than the asker
    even without it. So nobody keeps others away, and who is alone may have all.
    """
    recorder, number = shard.recorder, _find_empty(shard)
    if number > 0:
        return number
    most, found = _num_asked(shard, asker) + 1, 0
    for number in range(1, recorder.number + 1):
        recording = recording_of(recorder, number)
        if recording.state != RecordingState.GOING:
            continue  # what has ended is Python's
        if recording.is_asked == 0:
            found = number
            break
        num_asked = _num_asked(shard, recording.asker)
        if num_asked > most:
            most, found = num_asked, number
    if found > 0:  # not ended before: what has ended is Python's
        header_of(shard, recording_of(recorder, found).slot).recording = 0
    return found


@jit
def _num_asked(shard: Shard, asker: int) -> int:
    """Return how many recordings are there that somebody has asked for."""
    recorder, num_asked = shard.recorder, 0
    for number in range(1, recorder.number + 1):
        recording = recording_of(recorder, number)
        if recording.state != RecordingState.EMPTY and recording.is_asked != 0:
            num_asked += 1 if recording.asker == asker else 0
    return num_asked


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
    recording.is_asked = recording.is_unwanted = recording.asker = 0
    recording.step_bytes, recording.row_bytes = model.step_bytes, model.state_bytes
    recording.id_bytes = h.id_size(header)
    copy_bytes(field_address(recording, "id"), h.id_address(header), h.id_size(header))
    copy_bytes(recording.row, row_of(model, slot), model.state_bytes)
    recording.state = RecordingState.GOING
    header.recording = number
