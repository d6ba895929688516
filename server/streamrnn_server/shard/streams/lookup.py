"""Streams that are not in memory: what becomes of those that wait for them."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn_client.protocol.messages import ErrorCode
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.requests import request as r
from streamrnn_server.shard.requests.finish import finish, set_error
from streamrnn_server.shard.requests.request import Request, first_waiting, pop_waiting
from streamrnn_server.shard.streams.allocate import move_slot
from streamrnn_server.shard.streams.slots import free_slot, header_of, make_ready, model_of
from streamrnn_server.shard.structs import Shard

__all__ = ["end_waiting", "is_in_room", "let_go_on", "settle_without_record"]

_BUSY = int(ErrorCode.BUSY)


@jit
def is_in_room(shard: Shard, header: Header) -> bool:
    """Tell whether a slot is one of the room."""
    return header.model == shard.num_models


@jit
def end_waiting(shard: Shard, header: Header, request: Request, code: int) -> None:
    """End the request at the head of a stream's queue.

    Parameters
    ----------
    code : int
        Number of the `ErrorCode`, or 0.
    """
    if code != 0:
        set_error(request, code)
        shard.counters.num_errors += 1
    pop_waiting(shard.pool, header)
    finish(shard, request)


@jit
def let_go_on(shard: Shard, slot: int) -> None:
    """Let the requests of a stream that has left the room have their turn.

    Parameters
    ----------
    slot : int
        The stream's slot, which is in no list.
    """
    header = header_of(shard, slot)
    model = model_of(shard, header.model)
    make_ready(shard, model, slot, header)


@jit
def settle_without_record(shard: Shard, slot: int, header: Header, code: int) -> None:
    """Answer those who wait for a stream that is nowhere, until one of them makes it.

    Parameters
    ----------
    slot : int
        The stream's slot in the room.
    code : int
        Number of the `ErrorCode` that says why there is none.
    """
    pool = shard.pool
    while True:
        request = first_waiting(pool, header)
        if not request:
            free_slot(shard, slot)
            return
        kind = request.kind
        if kind == r.OPEN or kind == r.PLACE:
            target = move_slot(shard, slot, request.model, request.owner)
            if target >= 0:
                header_of(shard, target).flags = h.IS_READY
                let_go_on(shard, target)
                return
            end_waiting(shard, header, request, _BUSY)
        elif kind == r.CLOSE:
            request.last_seq = 0
            end_waiting(shard, header, request, 0)
        else:
            end_waiting(shard, header, request, code)
