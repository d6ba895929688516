"""What a request does to its stream when its turn has come.

All rules are looked at before anything is changed, so that a refused request leaves no trace.
Every function here is called with the request at the head of its stream's queue, and leaves taking
it out of there to its caller.
"""

from __future__ import annotations

from typing import Any

from streamrnn.kernels.cpu.step import check_input, output_of_row
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    load_f64,
    load_i32,
    store_f32,
    store_i32,
)
from streamrnn_client.protocol import DEFAULT_WINDOW, MAX_SEQ, MAX_WINDOW, ErrorCode
from streamrnn_server.shard.checkpoint.history import begin_history
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.digest import REFUSED_DIGEST, RESET_DIGEST, digest_of
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.recording import RecordingEnd
from streamrnn_server.shard.memory.slab import begin_row, model_of, row_of, slot_of
from streamrnn_server.shard.recorder import end_recording
from streamrnn_server.shard.requests.finish import set_error
from streamrnn_server.shard.requests.request import Form, Request, is_repeated, request_at
from streamrnn_server.shard.requests.versions import version_now
from streamrnn_server.shard.streams.eviction import allocate_block, allocate_ring
from streamrnn_server.shard.streams.owners import (
    count_ring,
    exceeded_limit,
    may_take_steps,
    owner_of,
    take_steps,
)
from streamrnn_server.shard.streams.replay_ring import (
    drop_ring,
    note_received,
    oldest_output,
    output_place,
    remember_digest,
    remembered,
    ring_size,
)
from streamrnn_server.shard.streams.row_location import note_written
from streamrnn_server.shard.structs import REPLY_SLACK_BYTES, Shard

__all__ = [
    "assign_number",
    "close_stream",
    "note_durable",
    "open_stream",
    "prepare_step",
    "reset_stream",
]

_MAX_WINDOW_LOG2 = MAX_WINDOW.bit_length() - 1


@jit
def open_stream(shard: Shard, header: Header, request: Request) -> bool:
    """Open a stream, or find it open; tell whether it is new."""
    has, asked_for = header.model, request.model
    flags = header.flags
    if flags & h.IS_OPEN == 0:
        if has != asked_for or (request.alias != 0 and version_now(shard, request) != has):
            # Closed and opened anew under another model without waiting for the answer: the slot
            # is free as soon as its queue is empty. So too if new streams get another version now.
            set_error(request, ErrorCode.BUSY)
            return False
        window_log2 = _window_log2(request.window)
        window_log2 = max(window_log2, shard.min_window_log2)
        header.window_log2 = window_log2
        header.ring = 0
        header.last_seq = 0
        header.durable_seq = 0
        header.generation += 1
        header.flags = h.IS_OPEN | (flags & h.IS_READY)
        _clear_row(shard, header)
        begin_history(shard, header)
        model_of(shard, header.model).num_open += 1
        shard.counters.num_opened += 1
    elif has != asked_for and not _is_version_of(shard, has, request):
        set_error(request, ErrorCode.WRONG_MODEL, has, asked_for)
        return False
    request.last_seq = header.last_seq
    request.window = 1 << header.window_log2
    if request.oldest_output >= 0:
        request.oldest_output = oldest_output(header)
    return flags & h.IS_OPEN == 0


@jit
def _is_version_of(shard: Shard, has: int, request: Request) -> bool:
    """Tell whether a stream's model is of those that an `open` names by the name of all versions.

    That is the name of one, too, whose streams are swapped to others.
    """
    family, asked_for = model_of(shard, has).family, request.model
    if request.alias != 0:
        return request.alias - 1 == family
    model = model_of(shard, asked_for)
    return model.successor >= 0 and model.family == family


@jit
def _window_log2(asked: int) -> int:
    if asked == 0:
        asked = DEFAULT_WINDOW
    window_log2 = 0
    while window_log2 < _MAX_WINDOW_LOG2 and asked >> (window_log2 + 1) > 0:
        window_log2 += 1
    return window_log2


@jit
def _clear_row(shard: Shard, header: Header) -> None:
    begin_row(model_of(shard, header.model), slot_of(shard, header))
    note_written(shard, header)


@jit
def close_stream(shard: Shard, header: Header) -> bool:
    """Close a stream but keep its slot; tell whether it was open."""
    flags = header.flags
    if flags & h.IS_OPEN == 0:
        return False
    count_ring(shard, header, -1)
    end_recording(shard, header, RecordingEnd.CLOSED)
    drop_ring(shard.arena, header)
    header.flags = flags & h.IS_READY
    model_of(shard, header.model).num_open -= 1
    return True


@jit
def _check_number(shard: Shard, header: Header, request: Request, y_bytes: int) -> bool:
    """Check what both a step and a reset must fulfil; allocate the ring."""
    flags = header.flags
    if flags & h.IS_OPEN == 0:
        set_error(request, ErrorCode.UNKNOWN)
        return False
    first = request.first_seq
    if flags & (h.IS_UNNUMBERED if first > 0 else h.IS_NUMBERED):
        set_error(request, ErrorCode.MIXED_NUMBERING)
        return False
    if first == 0:
        return True
    last = header.last_seq
    window = 1 << header.window_log2
    if first > last + 1:
        set_error(request, ErrorCode.GAP, last + 1, first)
    elif first <= last - window:
        set_error(request, ErrorCode.STALE, first, oldest_output(header))
    elif not allocate_ring(shard, header, y_bytes):
        num_bytes = ring_size(header.window_log2, y_bytes)
        set_error(
            request, ErrorCode.BUSY, exceeded_limit(shard, owner_of(shard, header), 0, num_bytes)
        )
    else:
        return True
    return False


@jit
def _check_end(request: Request, num_steps: int) -> bool:
    """Check the number of the last step; if it had no bound, sums of numbers would wrap."""
    if request.first_seq <= MAX_SEQ + 1 - num_steps:
        return True
    set_error(request, ErrorCode.BAD_PARAMS, request.first_seq, num_steps)
    return False


@jit
def reset_stream(shard: Shard, header: Header, request: Request) -> bool:
    """Set a stream's state back to the initial one; tell whether the state has changed."""
    if not assign_number(shard, header, request, RESET_DIGEST):
        return False
    end_recording(shard, header, RecordingEnd.RESET)
    _clear_row(shard, header)
    shard.counters.num_resets += 1
    return True


@jit
def assign_number(shard: Shard, header: Header, request: Request, digest: int) -> bool:
    """Assign a number to a change that is no step; false if refused or repeated.

    ``digest`` stands for the change in place of an input's digest.
    """
    y_bytes = model_of(shard, header.model).y_bytes
    if not _check_number(shard, header, request, y_bytes) or not _check_end(request, 1):
        return False
    seq = request.first_seq
    request.last_seq = seq
    flags = header.flags
    if 0 < seq <= header.last_seq:
        if not remembered(header, seq, digest):
            set_error(request, ErrorCode.CONFLICT, seq)
        else:
            shard.counters.num_duplicates += 1
            _note_received(header, request)
        return False
    if seq > 0:
        flags |= h.IS_NUMBERED
        if flags & h.IS_QUARANTINED and shard.journal.socket != 0:
            remember_digest(header, seq - 1, REFUSED_DIGEST)  # which nothing was remembered of
        header.last_seq = seq
        remember_digest(header, seq, digest)
        _note_received(header, request)
    header.flags = flags & ~h.IS_QUARANTINED
    return True


@jit
def _note_received(header: Header, request: Request) -> None:
    if not is_repeated(request):
        note_received(header, request.received)


@jit
def note_durable(header: Header, request: Request) -> None:
    """Note for the answer which step is on disk."""
    request.durable_seq = header.durable_seq


@jit
def prepare_step(shard: Shard, plan: Any, header: Header, request: Request) -> None:
    """Look at all that a step, or a chunk of steps, must fulfil; answer what was done before.

    Afterwards the request has an error, or NUM_STEPS is known and PROGRESS tells how many of its
    first steps were duplicates, whose outputs are in place already.
    """
    is_late = shard.now_ns - request.received_ns >= request.max_wait_ns
    if is_late and not 0 < request.first_seq <= header.last_seq:
        _refuse_late(shard, request)
        return
    model = model_of(shard, header.model)
    y_bytes = model.y_bytes
    is_child, parent = request.parent != 0, request_at(request.parent)
    if is_child and header.flags & h.IS_OPEN:
        has, expected = header.model, parent.model
        if expected < 0:
            expected = -1 - expected
            like = model_of(shard, expected)
            if model.step_bytes == like.step_bytes:
                expected = has
                parent.model = has
        if has != expected and not _fits_batch(shard, has, expected):
            set_error(request, ErrorCode.WRONG_MODEL, has, expected)
            return
    if not _check_number(shard, header, request, y_bytes) or not _check_x(
        shard, plan, header, request
    ):
        return
    num_steps = request.num_steps
    first = request.first_seq
    num_old = 0
    if first > 0:
        num_old = min(num_steps, header.last_seq - first + 1)
    if not _are_the_same(model.step_bytes, header, request, num_old):
        return
    if num_old > 0 and first < oldest_output(header):
        set_error(request, ErrorCode.STALE, first, oldest_output(header))
        return
    num_new = num_steps - num_old
    if is_late and num_new > 0:
        _refuse_late(shard, request)
        return
    if num_new > 0 and not may_take_steps(shard, request, num_new):
        return
    if is_child:
        request.y = parent.y + request.item * y_bytes
    elif num_steps > 1 or num_old > 0 or shard.is_always:
        # Otherwise y lies in the batch's scratch, and is sent before the next batch.
        block = allocate_block(shard, num_steps * y_bytes)
        if block == 0:
            set_error(request, ErrorCode.BUSY)
            return
        request.y_block = block
        request.y = block
    if num_new > 0:
        take_steps(shard, request, num_new)
    kind = h.IS_NUMBERED if first > 0 else h.IS_UNNUMBERED
    header.flags |= kind
    request.last_seq = first + num_steps - 1 if first > 0 else 0
    request.progress = num_old
    if num_old > 0:
        _answer_old(shard, plan, header, request, num_old)
        shard.counters.num_duplicates += num_old
    _note_received(header, request)


@jit
def _refuse_late(shard: Shard, request: Request) -> None:
    set_error(request, ErrorCode.LATE)
    shard.counters.num_late += 1


@jit
def _fits_batch(shard: Shard, has: int, expected: int) -> bool:
    """Tell whether a model is a version of a batch's with inputs and outputs of the same sizes."""
    model, like = model_of(shard, has), model_of(shard, expected)
    is_as_long = model.step_bytes == like.step_bytes and model.y_bytes == like.y_bytes
    return is_as_long and model.family == like.family


@jit
def _check_x(shard: Shard, plan: Any, header: Header, request: Request) -> bool:
    """Look at x's length and values; find NUM_STEPS."""
    model = model_of(shard, header.model)
    step_bytes = model.step_bytes
    form = request.form
    num_bytes = request.x_count
    if form == Form.ARRAY:
        num_bytes *= 4
    num_steps = 1
    if num_bytes != step_bytes:  # a division costs more than all else here
        num_steps = num_bytes // step_bytes
    if num_steps == 0 or num_bytes != num_steps * step_bytes:
        set_error(request, ErrorCode.WRONG_LENGTH, num_bytes, step_bytes, 0, form)
        return False
    window = 1 << header.window_log2
    if num_steps > window:
        set_error(request, ErrorCode.WINDOW, num_steps, window)
        return False
    if not _check_end(request, num_steps):
        return False
    reply_bytes = 2 * num_steps * model.y_bytes + REPLY_SLACK_BYTES
    if reply_bytes > shard.out_bytes:
        set_error(request, ErrorCode.TOO_LARGE, reply_bytes, shard.out_bytes)
        return False
    x = request.x
    bad = -1
    if form == Form.ARRAY:
        bad = _convert(x, num_bytes // 4, model.is_token)
    if bad < 0:
        bad = check_input(plan, x, num_steps)
    if bad >= 0:
        num_inputs, bits = step_bytes // 4, load_i32(x + 4 * bad)
        set_error(
            request, ErrorCode.BAD_VALUE, bad // num_inputs, bad % num_inputs, bits, header.model
        )
        return False
    request.num_steps = num_steps
    request.y_bytes = num_steps * model.y_bytes
    return True


@jit
def _convert(x: int, num_values: int, is_token: int) -> int:
    """Turn float64 in place into what the model takes; return the first that does not fit, or -1.

    The forms are of 8 and 4 bytes, so what is written never reaches what is still to be read.
    """
    for k in range(num_values):
        value = load_f64(x + 8 * k)
        if is_token:
            if not (0.0 <= value <= 4294967295.0 and value == float(int(value))):
                store_i32(x + 4 * k, -1)
                return k
            store_i32(x + 4 * k, int(value))
        else:
            store_f32(x + 4 * k, value)
    return -1


@jit
def _are_the_same(step_bytes: int, header: Header, request: Request, num_old: int) -> bool:
    """Compare the steps that were applied before with what came now."""
    x, first = request.x, request.first_seq
    for k in range(num_old):
        digest = digest_of(x + k * step_bytes, step_bytes)
        if not remembered(header, first + k, digest):
            set_error(request, ErrorCode.CONFLICT, first + k)
            return False
    return True


@jit
def _answer_old(shard: Shard, plan: Any, header: Header, request: Request, num_old: int) -> None:
    """Copy the outputs of steps that were applied before into the answer."""
    model = model_of(shard, header.model)
    y, y_bytes = request.y, model.y_bytes
    if header.window_log2 == 0:
        output_of_row(plan, row_of(model, slot_of(shard, header)), y)
        return
    for k in range(num_old):
        copy_bytes(y + k * y_bytes, output_place(header, request.first_seq + k, y_bytes), y_bytes)
