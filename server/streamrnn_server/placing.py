"""Streams made of records, or set back to one."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    store_i32,
    store_i64,
    store_u8,
)
from streamrnn.state import packing as e
from streamrnn.state import slab as h
from streamrnn.state.index import equal_bytes
from streamrnn.state.packing import row_in_record
from streamrnn.state.record import NUMBERED, UNNUMBERED
from streamrnn_client.protocol import ErrorCode
from streamrnn_server import layout as w
from streamrnn_server import requests as r
from streamrnn_server.finish import count
from streamrnn_server.ring import remember, remembered
from streamrnn_server.rows import note_written
from streamrnn_server.slots import row_of
from streamrnn_server.spilling import take_ring
from streamrnn_server.streams import set_error, take_number

__all__ = ["fill_slot", "place_stream", "roll_back"]

_BUSY, _EXISTS, _WRONG_MODEL = (
    int(ErrorCode.BUSY),
    int(ErrorCode.EXISTS),
    int(ErrorCode.WRONG_MODEL),
)


@jit
def fill_slot(shard: int, model: int, slot: int, header: int, record: int) -> bool:
    """Make the stream in a slot the one that a record holds.

    Parameters
    ----------
    shard : int
        Address of the shard.
    model : int
        Address of the record of the slot's model.
    slot : int
        The slot, in which no stream is open.
    header : int
        Address of its header.
    record : int
        Address of a stream's record, which Python has accepted for this model.

    Returns
    -------
    bool
        False if there is no room for its ring; then nothing has changed.
    """
    last_seq, window_log2 = (
        load_i64(record + e.RECORD_LAST_SEQ),
        load_u8(record + e.RECORD_WINDOW_LOG2),
    )
    numbering, num_ring = load_u8(record + e.RECORD_NUMBERING), load_i32(record + e.RECORD_NUM_RING)
    y_bytes, row_bytes = load_i64(model + w.Y_BYTES), load_i64(model + w.ROW_BYTES)
    store_u8(header + h.WINDOW_LOG2, window_log2)
    store_i64(header + h.RING, 0)
    if num_ring > 0 and not take_ring(shard, header, y_bytes):
        return False
    row = row_in_record(record)
    copy_bytes(row_of(model, slot), row, row_bytes)
    note_written(shard, slot)
    digests = row + row_bytes
    outputs = digests + 8 * num_ring
    for k in range(num_ring):
        seq = last_seq - num_ring + 1 + k
        remember(header, seq, load_i64(digests + 8 * k), outputs + k * y_bytes, y_bytes)
    store_i64(header + h.LAST_SEQ, last_seq)
    store_i64(header + h.DURABLE_SEQ, 0)
    flags = load_u8(header + h.FLAGS) & (h.IS_READY | h.IS_HELD)
    if numbering == NUMBERED:
        flags |= h.IS_NUMBERED
    elif numbering == UNNUMBERED:
        flags |= h.IS_UNNUMBERED
    store_u8(header + h.FLAGS, flags | h.IS_OPEN)
    store_i32(header + h.GENERATION, load_i32(header + h.GENERATION) + 1)
    store_i64(model + w.NUM_OPEN, load_i64(model + w.NUM_OPEN) + 1)
    return True


@jit
def place_stream(shard: int, model: int, slot: int, header: int, request: int) -> bool:
    """Open a stream that does not exist yet with the state that a record holds.

    If it exists and is just as the record says, it is as if it had been opened now: so the same
    request may come again when its answer was lost.

    Parameters
    ----------
    shard : int
        Address of the shard.
    model : int
        Address of the record of the slot's model.
    slot : int
        The slot.
    header : int
        Address of its header.
    request : int
        Address of the request's record, whose X is the stream's.

    Returns
    -------
    bool
        Whether it is done.
    """
    is_of_model = load_u16(header + h.MODEL) == load_i64(request + r.MODEL)
    record = load_i64(request + r.X)
    if load_u8(header + h.FLAGS) & h.IS_OPEN:
        if not is_of_model or not _is_as_recorded(model, slot, header, record):
            set_error(request, _EXISTS)
            return False
    elif is_of_model and fill_slot(shard, model, slot, header, record):
        count(shard, w.NUM_OPENED, 1)
    else:
        set_error(request, _BUSY)
        return False
    store_i64(request + r.LAST_SEQ, load_i64(header + h.LAST_SEQ))
    store_i64(request + r.WINDOW, 1 << load_u8(header + h.WINDOW_LOG2))
    return True


@jit
def _is_as_recorded(model: int, slot: int, header: int, record: int) -> bool:
    """Tell whether a stream has the state, the numbers and the last steps that a record holds."""
    flags, numbering = load_u8(header + h.FLAGS), load_u8(record + e.RECORD_NUMBERING)
    last_seq, num_ring = (
        load_i64(record + e.RECORD_LAST_SEQ),
        load_i32(record + e.RECORD_NUM_RING),
    )
    if (
        flags & h.IS_FROZEN != 0
        or (flags & h.IS_NUMBERED != 0) != (numbering == NUMBERED)
        or (flags & h.IS_UNNUMBERED != 0) != (numbering == UNNUMBERED)
        or load_u8(header + h.WINDOW_LOG2) != load_u8(record + e.RECORD_WINDOW_LOG2)
        or load_i64(header + h.LAST_SEQ) != last_seq
    ):
        return False
    row, row_bytes = row_in_record(record), load_i64(model + w.ROW_BYTES)
    if not equal_bytes(row_of(model, slot), row, row_bytes):
        return False
    y_bytes = load_i64(model + w.Y_BYTES)
    for k in range(num_ring):
        digest = load_i64(row + row_bytes + 8 * k)
        if remembered(header, last_seq - num_ring + 1 + k, digest, y_bytes) == 0:
            return False
    return True


@jit
def roll_back(shard: int, model: int, slot: int, header: int, request: int) -> bool:
    """Set a stream's state back to that of a record; its numbers go on.

    Parameters
    ----------
    shard : int
        Address of the shard.
    model : int
        Address of the record of the slot's model.
    slot : int
        The slot.
    header : int
        Address of its header.
    request : int
        Address of the request's record, whose X is the stream's, and whose digest stands for it.

    Returns
    -------
    bool
        Whether the state has changed.
    """
    digest = load_i64(request + r.DETAIL)
    is_open = load_u8(header + h.FLAGS) & h.IS_OPEN
    if is_open and load_u16(header + h.MODEL) != load_i64(request + r.MODEL):
        set_error(request, _WRONG_MODEL, load_u16(header + h.MODEL), load_i64(request + r.MODEL))
        return False
    if not take_number(shard, model, header, request, digest):
        return False
    row = row_in_record(load_i64(request + r.X))
    copy_bytes(row_of(model, slot), row, load_i64(model + w.ROW_BYTES))
    note_written(shard, slot)
    return True
