"""Streams that are not in memory: what becomes of those that wait for them."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64, load_u16, store_i64, store_u8
from streamrnn.state import slab as h
from streamrnn_client.protocol import ErrorCode
from streamrnn_server import layout as w
from streamrnn_server import requests as r
from streamrnn_server.finish import count, finish
from streamrnn_server.requests import first_waiting, pop_waiting
from streamrnn_server.slots import free_slot, header_of, make_ready, model_of
from streamrnn_server.streams import set_error
from streamrnn_server.taking import move_slot

__all__ = ["end_waiting", "is_in_room", "let_go_on", "settle_without_record"]

_BUSY = int(ErrorCode.BUSY)


@jit
def is_in_room(shard: int, header: int) -> bool:
    """Tell whether a slot is one of the room.

    Parameters
    ----------
    shard : int
        Address of the shard.
    header : int
        Address of the slot's header.

    Returns
    -------
    bool
    """
    return load_u16(header + h.MODEL) == load_i64(shard + w.NUM_MODELS)


@jit
def end_waiting(shard: int, header: int, request: int, code: int) -> None:
    """End the request at the head of a stream's queue.

    Parameters
    ----------
    shard : int
        Address of the shard.
    header : int
        Address of the header of the stream's slot.
    request : int
        Address of the record.
    code : int
        Number of the `ErrorCode`, or 0.
    """
    if code != 0:
        set_error(request, code)
        count(shard, w.NUM_ERRORS, 1)
    pop_waiting(load_i64(shard + w.POOL), header)
    finish(shard, request)


@jit
def let_go_on(shard: int, slot: int) -> None:
    """Let the requests of a stream that has left the room have their turn.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slot : int
        The stream's slot, which is in no list.
    """
    header = header_of(shard, slot)
    model = model_of(shard, load_u16(header + h.MODEL))
    make_ready(shard, model, slot, header)


@jit
def settle_without_record(shard: int, slot: int, header: int, code: int) -> None:
    """Answer those who wait for a stream that is nowhere, until one of them makes it.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slot : int
        The stream's slot in the room.
    header : int
        Address of its header.
    code : int
        Number of the `ErrorCode` that says why there is none.
    """
    pool = load_i64(shard + w.POOL)
    while True:
        request = first_waiting(pool, header)
        if request == 0:
            free_slot(shard, slot)
            return
        kind = load_i64(request + r.KIND)
        if kind == r.OPEN or kind == r.PLACE:
            target = move_slot(
                shard, slot, load_i64(request + r.MODEL), load_i64(request + r.OWNER)
            )
            if target >= 0:
                store_u8(header_of(shard, target) + h.FLAGS, h.IS_READY)
                let_go_on(shard, target)
                return
            end_waiting(shard, header, request, _BUSY)
        elif kind == r.CLOSE:
            store_i64(request + r.LAST_SEQ, 0)
            end_waiting(shard, header, request, 0)
        else:
            end_waiting(shard, header, request, code)
