"""Slots: where they lie, the lists they are in, giving them back."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    load_i64,
    load_u8,
    load_u16,
    store_i32,
    store_i64,
    store_u8,
)
from streamrnn.state import slab as h
from streamrnn.state.arena import release
from streamrnn.state.index import hash64, remove_slot
from streamrnn_server import layout as w
from streamrnn_server.ring import drop_ring

__all__ = [
    "free_slot",
    "give_slot",
    "header_of",
    "is_clean",
    "let_go",
    "make_ready",
    "model_of",
    "row_of",
]

_AT_WORK = h.IS_READY | h.IS_HELD | h.IS_DIRTY | h.IS_STAGED


@jit
def header_of(shard: int, slot: int) -> int:
    """Return where a slot's header lies.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slot : int
        The slot.

    Returns
    -------
    int
    """
    return load_i64(shard + w.HEADERS) + slot * h.HEADER_BYTES


@jit
def model_of(shard: int, index: int) -> int:
    """Return where a model's record lies.

    Parameters
    ----------
    shard : int
        Address of the shard.
    index : int
        The model's.

    Returns
    -------
    int
    """
    return load_i64(shard + w.MODELS) + index * w.MODEL_RECORD_BYTES


@jit
def row_of(model: int, slot: int) -> int:
    """Return where a slot's row lies.

    Parameters
    ----------
    model : int
        Address of the record of the slot's model.
    slot : int
        The slot.

    Returns
    -------
    int
    """
    return load_i64(model + w.FIRST_ROW) + slot * load_i64(model + w.ROW_BYTES)


@jit
def make_ready(shard: int, model: int, slot: int, header: int) -> None:
    """Put a slot that has work at the end of its model's list.

    Parameters
    ----------
    shard : int
        Address of the shard.
    model : int
        Address of the model's record.
    slot : int
        The slot, which is in no list.
    header : int
        Address of its header.
    """
    store_i32(header + h.NEXT, 0)
    if load_i64(model + w.READY) == 0:
        store_i64(model + w.READY, slot + 1)
    else:
        store_i32(header_of(shard, load_i64(model + w.READY_LAST) - 1) + h.NEXT, slot + 1)
    store_i64(model + w.READY_LAST, slot + 1)
    store_i64(shard + w.NUM_READY, load_i64(shard + w.NUM_READY) + 1)


@jit
def free_slot(shard: int, slot: int) -> None:
    """Free a slot that holds no open stream and for which nothing waits.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slot : int
        The slot, which is in no list.
    """
    header = header_of(shard, slot)
    num_bytes = load_u8(header + h.ID_BYTES)
    hash_value = hash64(h.id_address(header), num_bytes)
    remove_slot(load_i64(shard + w.INDEX), hash_value, slot)
    if num_bytes > h.MAX_INLINE_ID_BYTES:
        release(load_i64(shard + w.ARENA), load_i64(header + h.ID))
    give_slot(shard, slot)


@jit
def give_slot(shard: int, slot: int) -> None:
    """Put a slot that is not in the index on its model's list of free ones.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slot : int
        The slot, which is in no list.
    """
    header = header_of(shard, slot)
    index = load_u16(header + h.MODEL)
    model = model_of(shard, index)
    store_i32(header + h.NEXT, load_i64(model + w.FREE_SLOT))
    store_i64(model + w.FREE_SLOT, slot + 1)
    store_u8(header + h.FLAGS, 0)
    if index < load_i64(shard + w.NUM_MODELS):
        store_i64(shard + w.NUM_STREAMS, load_i64(shard + w.NUM_STREAMS) - 1)


@jit
def is_clean(header: int) -> bool:
    """Tell whether a stream is at rest, and nothing of it is on its way to disk.

    Parameters
    ----------
    header : int
        Address of its header.

    Returns
    -------
    bool
    """
    return load_u8(header + h.FLAGS) & (_AT_WORK | h.IS_OPEN) == h.IS_OPEN


@jit
def let_go(shard: int, slot: int) -> None:
    """Forget a stream that rests; what is on disk stays there.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slot : int
        The slot of an open stream, which is in no list.
    """
    header = header_of(shard, slot)
    model = model_of(shard, load_u16(header + h.MODEL))
    drop_ring(load_i64(shard + w.ARENA), header)
    store_i64(model + w.NUM_OPEN, load_i64(model + w.NUM_OPEN) - 1)
    free_slot(shard, slot)
