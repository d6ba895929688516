"""Restore: streams made from records, or set back to one."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    load_i64,
)
from streamrnn.state.record import NUMBERED, UNNUMBERED, RecordFault, RecordHead
from streamrnn_client.protocol import ErrorCode
from streamrnn_server.shard.checkpoint.history import begin_history, count_change
from streamrnn_server.shard.checkpoint.packing import (
    fault_of,
    fits_model,
    inputs_bytes_of,
    inputs_in_record,
    num_outputs_of,
    record_at,
    row_in_record,
)
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.index import equal_bytes
from streamrnn_server.shard.memory.kept_inputs import take_inputs
from streamrnn_server.shard.memory.recording import RecordingEnd
from streamrnn_server.shard.memory.slab import (
    history_of,
    kept_inputs_of,
    model_of,
    row_of,
    slot_of,
)
from streamrnn_server.shard.recorder import end_recording
from streamrnn_server.shard.requests.finish import set_error
from streamrnn_server.shard.requests.request import Request
from streamrnn_server.shard.streams.eviction import allocate_ring
from streamrnn_server.shard.streams.operations import assign_number
from streamrnn_server.shard.streams.replay_ring import (
    note_received,
    output_place,
    remember_digest,
    remembered,
)
from streamrnn_server.shard.streams.row_location import note_written
from streamrnn_server.shard.structs import Shard

__all__ = ["fill_slot", "restore_stream", "roll_back", "usable_record"]

_NAME_DIGEST = 0xFFFF_FFFF  # the part of a rollback's digest that is the snapshot's name's


@jit
def usable_record(shard: Shard, index: int, data: int, num_bytes: int) -> RecordHead:
    """Return a record that a stream of a model can be made of; a null one if it cannot.

    Nothing of a record is read before this, and nothing else is checked after it.
    """
    record = record_at(data)
    if index < 0 or index >= shard.num_models or fault_of(record, num_bytes) != RecordFault.NONE:
        return record_at(0)
    model = model_of(shard, index)
    is_fitting = fits_model(
        record.row_bytes,
        record.y_bytes,
        inputs_bytes_of(record),
        model.state_bytes,
        model.y_bytes,
        model.step_bytes,
    )
    return record if is_fitting else record_at(0)


@jit
def _take_state(shard: Shard, header: Header, record: RecordHead) -> None:
    """Take the state and the inputs of a usable record; of the inputs what there is room for."""
    model, slot = model_of(shard, header.model), slot_of(shard, header)
    copy_bytes(row_of(model, slot), row_in_record(record), model.state_bytes)
    if model.max_kept > 0:
        num = inputs_bytes_of(record) // model.step_bytes
        take_inputs(kept_inputs_of(model, slot), inputs_in_record(record), num)
    note_written(shard, header)


@jit
def fill_slot(shard: Shard, header: Header, record: RecordHead) -> bool:
    """Fill a slot without an open stream from a usable record; false without memory."""
    model = model_of(shard, header.model)
    numbering, num_ring = record.numbering, record.num_ring
    y_bytes = model.y_bytes
    header.window_log2 = record.window_log2
    header.ring = 0
    if num_ring > 0 and not allocate_ring(shard, header, y_bytes):
        return False
    _take_state(shard, header, record)
    digests = row_in_record(record) + model.state_bytes
    for k in range(num_ring):
        remember_digest(header, record.last_seq + 1 - num_ring + k, load_i64(digests + 8 * k))
    num_outputs, outputs = num_outputs_of(record), digests + 8 * num_ring
    for k in range(num_outputs):
        y = output_place(header, record.last_seq + 1 - num_outputs + k, y_bytes)
        copy_bytes(y, outputs + k * y_bytes, y_bytes)
    header.last_seq = record.last_seq
    note_received(header, record.last_seq - num_outputs)
    header.durable_seq = 0
    flags = header.flags & (h.IS_READY | h.IS_BLOCKED)
    if numbering == NUMBERED:
        flags |= h.IS_NUMBERED
    elif numbering == UNNUMBERED:
        flags |= h.IS_UNNUMBERED
    if shard.histories != 0:
        history = history_of(shard, slot_of(shard, header))
        is_old = record.version == 1
        history.incarnation = 0 if is_old else record.incarnation
        history.num_changes = 0 if is_old else record.num_changes
    header.flags = flags | h.IS_OPEN
    header.generation += 1
    model.num_open += 1
    return True


@jit
def restore_stream(shard: Shard, header: Header, request: Request) -> bool:
    """Open a new stream with a record's state; tell whether it is done.

    If it is open and just as the record says, that succeeds too: the same request may come again
    when its answer was lost.
    """
    is_of_model = header.model == request.model
    record = record_at(request.x)
    if header.flags & h.IS_OPEN:
        if not is_of_model or not _is_as_recorded(shard, header, record):
            set_error(request, ErrorCode.EXISTS)
            return False
    elif is_of_model and fill_slot(shard, header, record):
        begin_history(shard, header)  # it is not the stream whose record it was
        count_change(shard, header)
        shard.counters.num_opened += 1
    else:
        set_error(request, ErrorCode.BUSY)
        return False
    request.last_seq = header.last_seq
    request.window = 1 << header.window_log2
    return True


@jit
def _is_as_recorded(shard: Shard, header: Header, record: RecordHead) -> bool:
    """Tell whether a stream has the state, the numbers and the last steps that a record holds."""
    flags, numbering = header.flags, record.numbering
    last_seq, num_ring = record.last_seq, record.num_ring
    if (
        flags & h.IS_QUARANTINED != 0
        or (flags & h.IS_NUMBERED != 0) != (numbering == NUMBERED)
        or (flags & h.IS_UNNUMBERED != 0) != (numbering == UNNUMBERED)
        or header.window_log2 != record.window_log2
        or header.last_seq != last_seq
    ):
        return False
    model = model_of(shard, header.model)
    row, row_bytes = row_in_record(record), model.state_bytes
    if not equal_bytes(row_of(model, slot_of(shard, header)), row, row_bytes):
        return False
    for k in range(num_ring):
        digest = load_i64(row + row_bytes + 8 * k)
        if not remembered(header, last_seq - num_ring + 1 + k, digest):
            return False
    return True


@jit
def roll_back(shard: Shard, header: Header, request: Request) -> bool:
    """Set the state back to a record's; tell whether it has changed.

    Where there is a journal the last good state is here, and back to that there is no record.
    """
    digest, is_here = request.detail[0], request.window != 0
    # Without a record Python has found nothing, but knows not whose the stream is.
    if request.x_count == 0 and not is_here:
        set_error(request, ErrorCode.UNKNOWN_SNAPSHOT, digest & _NAME_DIGEST)
        return False
    is_open = header.flags & h.IS_OPEN
    if is_open and not is_here and header.model != request.model:
        set_error(request, ErrorCode.WRONG_MODEL, header.model, request.model)
        return False
    if not assign_number(shard, header, request, digest):
        return False
    end_recording(shard, header, RecordingEnd.ROLLED_BACK)
    count_change(shard, header)
    if is_here:
        return True
    _take_state(shard, header, record_at(request.x))
    return True
