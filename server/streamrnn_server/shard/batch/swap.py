"""Swap: a stream goes on as one of another version of its model.

A model that has a successor computes no more than what is left of chunks that have begun. Each of
its streams, when it has work next, is first brought to disk as it is; then it gets a slot of the
successor, and is brought to disk anew before its next step. What its client says that it repeats is
no such work. So whatever a client or a journal has to repeat after a crash was answered by the
model that repeats it, and a step that was answered before the swap has its output in the ring
still.

With `SwapPolicy.REPLAY` the stream is first primed: it takes the inputs that are kept of it, one in
each batch, beside what other streams do, as a chunk's steps are taken; then it is brought to disk.
Until then nothing of it is dirty: on disk it is what it was.
"""

from __future__ import annotations

from typing import Any

from streamrnn.kernels.cpu.nan_scan import has_nan
from streamrnn.kernels.cpu.plan import plan_at
from streamrnn.kernels.cpu.step import check_input, output_of_row
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes
from streamrnn_client.protocol import ErrorCode
from streamrnn_server.shard.checkpoint.history import count_change
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.kept_inputs import input_place, keep_input, num_inputs
from streamrnn_server.shard.memory.recording import RecordingEnd
from streamrnn_server.shard.memory.slab import (
    begin_row,
    header_of,
    history_of,
    kept_inputs_of,
    model_of,
    row_of,
    slot_of,
)
from streamrnn_server.shard.recorder import end_recording
from streamrnn_server.shard.requests.finish import set_error
from streamrnn_server.shard.requests.queue import push_first
from streamrnn_server.shard.requests.request import (
    Kind,
    Request,
    allocate_request,
    is_repeated,
)
from streamrnn_server.shard.streams.allocate import allocate_slot, take_place
from streamrnn_server.shard.streams.dirty import wait_for_disk
from streamrnn_server.shard.streams.eviction import allocate_ring
from streamrnn_server.shard.streams.owners import count_stream, owner_of
from streamrnn_server.shard.streams.replay_ring import note_received, remember
from streamrnn_server.shard.streams.slots import make_ready
from streamrnn_server.shard.structs import Model, Shard, SwapPolicy

__all__ = ["begin_swap", "note_primed"]


@jit
def begin_swap(shard: Shard, plan: Any, header: Header, request: Request) -> bool:
    """Begin to swap a stream of a model with a successor, if its steps are done; or go on.

    Then it waits for the disk, and is in no list. Without memory its first request is refused.
    """
    flags = header.flags
    if flags & h.IS_OPEN == 0 or flags & h.IS_QUARANTINED:
        return False
    kind = request.kind
    if kind != Kind.STEP and kind != Kind.RESET and kind != Kind.SWAP:
        return False  # a client asks it before it repeats what a crash has lost
    is_in_chunk = kind != Kind.RESET and request.num_steps >= 0  # or is being primed
    # A gap is refused, and then comes what is to be repeated.
    if is_in_chunk or is_repeated(request) or request.first_seq > header.last_seq + 1:
        return False
    if flags & (h.IS_DIRTY | h.IS_BUFFERED):
        is_done = _block(shard, header)
    else:
        is_done = _move(shard, plan, header)
    if not is_done:
        set_error(request, ErrorCode.BUSY)
    return is_done


@jit
def _block(shard: Shard, header: Header) -> bool:
    """Let a stream wait until it is on disk; false without a request that could stand for that."""
    if shard.pool.num_free == 0:
        return False
    _push(shard, header)
    wait_for_disk(shard, header)
    return True


@jit
def _push(shard: Shard, header: Header) -> Request:
    """Let a request of the shard's own stand before a stream's; the pool has a free one."""
    request = allocate_request(shard.pool)
    request.kind, request.first_seq = Kind.SWAP, 0
    push_first(shard.pool, header, request)
    return request


@jit
def _move(shard: Shard, plan: Any, header: Header) -> bool:
    """Move a stream to its successor's slots; false without memory, with nothing changed."""
    model, owner = model_of(shard, header.model), owner_of(shard, header)
    if shard.pool.num_free == 0 or not _keep_last_output(shard, plan, header):
        return False
    # It is one stream before and after, and counts against no limit in between.
    shard.num_streams -= 1
    count_stream(shard, header, -1)
    target = allocate_slot(shard, model.successor, owner)
    shard.num_streams += 1
    count_stream(shard, header, 1)
    if target < 0:
        return False
    to, successor = header_of(shard, target), model_of(shard, model.successor)
    slot = slot_of(shard, header)
    if model.policy == SwapPolicy.CARRY:  # versions of one model keep as many inputs
        copy_bytes(row_of(successor, target), row_of(model, slot), successor.row_bytes)
    else:
        begin_row(successor, target)
    num_kept = 0
    if model.policy == SwapPolicy.REPLAY and model.max_kept > 0 and successor.max_kept > 0:
        num_kept = _pass_inputs(model, slot, successor, target)
    to.window_log2, to.ring = header.window_log2, header.ring
    to.last_seq, to.durable_seq = header.last_seq, header.durable_seq
    to.flags = header.flags & (h.IS_OPEN | h.IS_NUMBERED | h.IS_UNNUMBERED)
    if shard.histories != 0:
        before, after = history_of(shard, slot), history_of(shard, target)
        after.incarnation, after.num_changes = before.incarnation, before.num_changes
        count_change(shard, to)
    end_recording(shard, header, RecordingEnd.SWAPPED)
    header.ring = 0
    model.num_open -= 1
    successor.num_open += 1
    take_place(shard, header, to, owner)
    shard.counters.num_swapped += 1
    if num_kept == 0:
        return _block(shard, to)
    request = _push(shard, to)
    request.x, request.num_steps = input_place(kept_inputs_of(successor, target), 0), num_kept
    to.flags |= h.IS_READY
    make_ready(shard, to)
    return True


@jit
def _pass_inputs(model: Model, slot: int, successor: Model, target: int) -> int:
    """Let a slot just begun keep another's inputs; return how many.

    What the successor would refuse as a step is left out. They lie one behind the other then.
    """
    kept, to = kept_inputs_of(model, slot), kept_inputs_of(successor, target)
    plan, num_kept = plan_at(successor.plan), num_inputs(kept)
    for k in range(max(0, num_kept - to.max_kept), num_kept):
        x = input_place(kept, k)
        if check_input(plan, x, 1) < 0:
            keep_input(to, x)
    return num_inputs(to)


@jit
def note_primed(shard: Shard, model: Model, header: Header, request: Request, y: int) -> None:
    """Note that a stream has taken one of the inputs that it is primed with; no answer has it."""
    request.progress += 1
    request.y = 0
    end_recording(shard, header, RecordingEnd.SWAPPED)
    if has_nan(y, model.y_bytes):  # as with a reset
        begin_row(model, slot_of(shard, header))
        request.progress = request.num_steps
    if request.progress < request.num_steps:
        make_ready(shard, header)
    else:
        wait_for_disk(shard, header)


@jit
def _keep_last_output(shard: Shard, plan: Any, header: Header) -> bool:
    """Give a stream with window 1 a ring: its last output follows from its row no more."""
    if header.window_log2 > 0 or header.flags & h.IS_NUMBERED == 0 or header.last_seq == 0:
        return True
    model, digest = model_of(shard, header.model), header.ring
    header.window_log2, header.ring = 1, 0
    if not allocate_ring(shard, header, model.y_bytes):
        header.window_log2, header.ring = 0, digest
        return False
    y = shard.batch_y
    output_of_row(plan, row_of(model, slot_of(shard, header)), y)
    remember(header, header.last_seq, digest, y, model.y_bytes)
    note_received(header, header.last_seq - 1)
    return True
