"""The generator's loop: one thread, one socket, compiled, without the GIL."""

from __future__ import annotations

import sys
from enum import IntEnum

from numba.core import types
from numba.types import ExternalFunction

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import store_i32, store_i64, store_u16
from streamrnn_bench.load.arrivals import first_ns, pop
from streamrnn_bench.load.senders import How, Load, Phase, load_at
from streamrnn_bench.load.turns import (
    handle,
    keep,
    note_unfinished,
    send_close,
    send_open,
    take_turn,
)
from streamrnn_bench.load.wire import sender_of
from streamrnn_server.shard.libzmq import (
    EMPTY,
    MESSAGE_BYTES,
    POLL_BYTES,
    monotonic_ns,
    msg_close,
    msg_data,
    msg_init,
    msg_more,
    poll_sockets,
    receive_frame,
)

__all__ = ["Mode", "drive"]


class Mode(IntEnum):
    """What a drive is to do."""

    OPEN = 0  # all streams
    STEP = 1  # until `Control.UNTIL_NS`, and the answers to what was due before
    CLOSE = 2  # all streams


_MAX_REPLIES = 64  # before it is seen what is due
_MAX_ASKED = 256  # `open` and `close` under way
_MAX_WAIT_NS = 10_000_000  # then Python's word is looked at
_HAS_PPOLL = sys.platform == "linux"
_POLLIN = 1
_ppoll = ExternalFunction("ppoll", types.int32(*4 * (types.int64,)))


@jit
def drive(address: int, mode: int) -> int:
    """Drive the senders of a `Load` until what the mode says is done; return a `How`.

    No other thread may use the socket meanwhile.
    """
    load = load_at(address)
    message = load.scratch
    items = message + MESSAGE_BYTES
    clock = items + POLL_BYTES
    msg_init(message)
    load.counts.how = How.RUNNING
    load.cursor = 0
    now = monotonic_ns(clock)
    heard_ns = now
    while load.counts.how == How.RUNNING:
        _begin(load, mode, now)
        num_before = load.counts.num_opened + load.counts.num_closed
        num_replies = _receive(load, mode, message, clock)
        now = monotonic_ns(clock)
        # A refusal is no progress: the same is tried again.
        if load.counts.num_opened + load.counts.num_closed > num_before:
            heard_ns = now
        if load.counts.how != How.RUNNING:
            break
        until = load.until_ns
        if _is_done(load, mode, now):
            load.counts.how = How.DONE
        elif load.stop != 0:
            load.counts.how = How.STOPPED
        elif mode != Mode.STEP and now - heard_ns > load.plan.timeout_ns:
            load.counts.how = How.NO_REPLY
        elif mode == Mode.STEP and now - until > load.plan.timeout_ns:
            load.counts.how = How.UNFINISHED
        elif num_replies < _MAX_REPLIES:
            wait_ns = _MAX_WAIT_NS
            if not _is_full(load):
                wait_ns = min(wait_ns, first_ns(load.heap) - now)
            if wait_ns > 0:
                _wait(load, items, wait_ns)
                now = monotonic_ns(clock)
    msg_close(message)
    if mode == Mode.STEP:
        note_unfinished(load, now)
    return load.counts.how


@jit
def _begin(load: Load, mode: int, now: int) -> None:
    """Send what is due; in other modes let the next senders open or close."""
    heap = load.heap
    while first_ns(heap) <= now and load.counts.how == How.RUNNING:
        if _is_full(load):
            load.counts.full_ns = now
            break
        k = pop(heap)
        if mode == Mode.CLOSE:
            sender_of(load, k).is_queued = 0
        else:
            take_turn(load, k, now)
    if mode == Mode.STEP:
        return
    while load.cursor < load.num_senders and load.counts.num_asked < _MAX_ASKED:
        k = load.cursor
        load.cursor += 1
        phase = sender_of(load, k).phase
        if mode == Mode.OPEN:
            send_open(load, k, now)
        elif phase in (Phase.STEPPING, Phase.BROKEN):
            send_close(load, k, now)
        if load.counts.how != How.RUNNING:
            return


@jit
def _is_full(load: Load) -> bool:
    """Tell whether the server would drop answers to more than is in flight."""
    return load.counts.in_flight >= load.plan.max_in_flight


@jit
def _receive(load: Load, mode: int, message: int, clock: int) -> int:
    """Take the replies that are there, and send what follows; return their number."""
    for number in range(_MAX_REPLIES):
        size = receive_frame(load.socket, message)
        if size < 0:
            if size != EMPTY:
                load.counts.how = How.NO_REPLY
            return number
        now = monotonic_ns(clock)
        data = msg_data(message)
        if msg_more(message) or not handle(load, data, size, now, mode == Mode.STEP):
            load.counts.how = How.BAD_REPLY
            load.kept_bytes = 0
            keep(load, data, size)
            return number
        if load.counts.how != How.RUNNING:
            return number
    return _MAX_REPLIES


@jit
def _is_done(load: Load, mode: int, now: int) -> bool:
    if mode == Mode.OPEN:
        return load.counts.num_open == load.num_senders
    if mode == Mode.CLOSE:
        return load.cursor == load.num_senders and load.counts.num_asked == 0
    until = load.until_ns
    is_empty = first_ns(load.heap) >= until
    return now >= until and load.counts.in_flight == 0 and is_empty


@jit
def _wait(load: Load, items: int, wait_ns: int) -> None:
    """Wait for a message, or so long. Everything that has come must have been received.

    Only then the descriptor, which tells of changes, becomes readable with the next message.
    """
    if not _HAS_PPOLL:
        poll_sockets(items, load.socket, load.socket, 0, 0, wait_ns // 1_000_000)
        return
    store_i32(items, load.descriptor)
    store_u16(items + 4, _POLLIN)
    store_u16(items + 6, 0)
    store_i64(items + 16, 0)
    store_i64(items + 24, wait_ns)
    _ppoll(items, 1, items + 16, 0)
