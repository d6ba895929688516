"""Choose the rows of a batch: at most one step of each stream, of one model.

A chunk's stream stays in for as many batches as it has steps, and every batch others come and go.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import int64_array
from streamrnn.kernels.pointers import address
from streamrnn.state.journal import ChangeKind
from streamrnn_client.protocol import ErrorCode
from streamrnn_server.shard.batch.swap import begin_swap
from streamrnn_server.shard.checkpoint.entry import entry_bytes, write_entry
from streamrnn_server.shard.checkpoint.history import note_change, note_owner
from streamrnn_server.shard.checkpoint.packing import entry_at
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.arena import release
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.journal import is_full
from streamrnn_server.shard.memory.slab import header_of, model_of, row_of, slot_of
from streamrnn_server.shard.recorder import find_recording
from streamrnn_server.shard.requests.finish import finish, set_error
from streamrnn_server.shard.requests.queue import first_waiting, pop_waiting
from streamrnn_server.shard.requests.request import Kind, Request, names_model, request_at
from streamrnn_server.shard.streams.dirty import mark_dirty, wait_for_disk
from streamrnn_server.shard.streams.eviction import allocate_block
from streamrnn_server.shard.streams.operations import (
    close_stream,
    note_durable,
    open_stream,
    prepare_step,
    reset_stream,
)
from streamrnn_server.shard.streams.owners import is_forbidden
from streamrnn_server.shard.streams.replay_ring import prefetch_place
from streamrnn_server.shard.streams.restore import restore_stream, roll_back
from streamrnn_server.shard.streams.row_location import is_row_on_gpu, wait_for_row
from streamrnn_server.shard.streams.slots import free_slot
from streamrnn_server.shard.structs import Model, Shard, model_at

__all__ = ["batch_of", "can_step", "choose_model", "gather", "mark_idle"]

_LOOKED_AT_A_ROW = 4  # slots, at most


class Batch(NamedTuple):
    """The rows of a batch, one step of a stream each; arrays of int64, shape (max_rows,)."""

    rows: Any  # addresses of the streams' rows
    xs: Any  # of the inputs
    ys: Any  # of the outputs
    slots: Any
    requests: Any  # addresses


@jit
def batch_of(shard: Shard) -> Batch:
    """Return the arrays of a shard's batch."""
    return Batch(
        int64_array(shard.rows, shard.max_rows),
        int64_array(shard.xs, shard.max_rows),
        int64_array(shard.ys, shard.max_rows),
        int64_array(shard.batch_slots, shard.max_rows),
        int64_array(shard.batch_requests, shard.max_rows),
    )


@jit
def can_step(shard: Shard) -> bool:
    """Tell whether a batch can be begun: streams are ready, and the journal has space."""
    return shard.num_ready > 0 and not is_full(shard.journal)


@jit
def choose_model(shard: Shard) -> Model:
    """Choose the model of the next batch, in turn; a null one if none can be begun."""
    if not can_step(shard):
        return model_at(0)
    index = shard.next_model
    while True:
        model = model_of(shard, index)
        index += 1
        if index == shard.num_models:
            index = 0
        if model.ready.first != 0:
            shard.next_model = index
            return model


@jit
def gather(shard: Shard, plan: Any, model: Model) -> int:
    """Take ready streams of a model until the batch is full; return the number of rows.

    What needs no row (an open, a close, a reset, a duplicate, an error) is done on the way.
    """
    y_bytes, is_swapped = model.y_bytes, model.successor >= 0
    max_rows = shard.max_rows
    num_rows = 0
    for _ in range(_LOOKED_AT_A_ROW * max_rows):
        slot = model.ready.first - 1
        if slot < 0 or num_rows == max_rows:
            break
        header = header_of(shard, slot)
        model.ready.first = header.next
        shard.num_ready -= 1
        request = _next_step(shard, plan, header, is_swapped)
        if request:
            _place(shard, model, slot, request, num_rows)
            if request.first_seq > 0:
                prefetch_place(header, header.last_seq + 1, y_bytes)
            num_rows += 1
    return num_rows


@jit
def _next_step(shard: Shard, plan: Any, header: Header, is_swapped: bool) -> Request:
    """Serve a stream's requests up to its next step to compute; return that, or null."""
    pool = shard.pool
    while True:
        request = first_waiting(pool, header)
        if not request:
            mark_idle(shard, header)
            return request
        if is_swapped and begin_swap(shard, plan, header, request):
            return request_at(0)
        kind = request.kind
        if kind == Kind.SWAP and request.progress < request.num_steps:  # it is being primed
            return request
        if kind == Kind.STEP or not names_model(kind):
            request.model = header.model
        is_quarantined = header.flags & h.IS_QUARANTINED != 0
        if is_swapped and request.code != 0:
            pass  # there was no memory
        elif is_forbidden(shard, header, request):
            set_error(request, ErrorCode.FORBIDDEN)
        elif is_quarantined and kind in (Kind.STEP, Kind.EXPORT, Kind.SNAPSHOT, Kind.SYNC):
            seq = header.last_seq
            set_error(request, ErrorCode.QUARANTINED, seq, seq + 1 if seq > 0 else 0)
        elif kind == Kind.STEP:
            if request.num_steps < 0:
                prepare_step(shard, plan, header, request)
            if request.code == 0 and request.progress < request.num_steps:
                return request
        elif kind in (Kind.EXPORT, Kind.RESTORE) and is_row_on_gpu(shard, slot_of(shard, header)):
            wait_for_row(shard, header)
            return request_at(0)
        elif _must_wait_for_disk(shard, header, request):
            wait_for_disk(shard, header)
            return request_at(0)
        if request.code != 0:
            shard.counters.num_errors += 1
        note_durable(header, request)
        pop_waiting(pool, header)
        finish(shard, request)


@jit
def _must_wait_for_disk(shard: Shard, header: Header, request: Request) -> bool:
    """Serve a request that is no step; tell whether its stream must wait for the disk."""
    has_disk = shard.disk != 0
    flags, kind = header.flags, request.kind
    if kind == Kind.OPEN:
        if open_stream(shard, header, request):
            mark_dirty(shard, header)
            note_owner(shard, header, ChangeKind.OPEN)
        return False
    if kind == Kind.RESET:
        if reset_stream(shard, header, request):
            mark_dirty(shard, header)
            note_change(shard, header, ChangeKind.RESET, request.first_seq, 0, 0)
        return False
    if kind == Kind.CLOSE:
        if has_disk and flags & h.IS_OPEN:
            return True
        was_open = close_stream(shard, header)
        request.last_seq = 1 if was_open else 0
        shard.counters.num_closed += 1 if was_open else 0
        return False
    if kind == Kind.RESTORE:
        return restore_stream(shard, header, request) and has_disk
    if flags & h.IS_OPEN == 0:
        set_error(request, ErrorCode.UNKNOWN)
        return False
    if kind == Kind.ROLLBACK:
        return roll_back(shard, header, request) and has_disk
    if kind == Kind.EXPORT:
        _copy_out(shard, header, request)
        return False
    if kind == Kind.RECORD:
        find_recording(shard, header, request)
        return False
    request.last_seq = header.last_seq  # SNAPSHOT and SYNC
    return True


@jit
def _copy_out(shard: Shard, header: Header, request: Request) -> None:
    """Copy a stream as it is now; Python makes a record of it."""
    none = request_at(0)
    num_bytes = entry_bytes(shard, header, none)
    block = allocate_block(shard, num_bytes)
    if block == 0 or num_bytes > shard.out_bytes // 2:
        set_error(request, ErrorCode.BUSY)
        release(shard.arena, block)
        return
    write_entry(shard, header, none, entry_at(block))
    request.y_block = block
    request.y = block
    request.y_bytes = num_bytes


@jit
def mark_idle(shard: Shard, header: Header) -> None:
    """Mark a stream that has no requests as idle; free its slot if it is not open."""
    flags = header.flags
    header.flags = flags & ~h.IS_READY
    if flags & h.IS_OPEN == 0:
        free_slot(shard, header)


@jit
def _place(shard: Shard, model: Model, slot: int, request: Request, row: int) -> None:
    progress = request.progress
    x = request.x + progress * model.step_bytes
    y = request.y
    if y == 0:
        y = shard.batch_y + row * shard.batch_y_stride
        request.y = y
    else:
        y += progress * model.y_bytes
    batch = batch_of(shard)
    batch.rows[row], batch.xs[row], batch.ys[row] = row_of(model, slot), x, y
    batch.slots[row], batch.requests[row] = slot, address(request)
