"""What waits for each client outside of the shard: replies in libzmq, messages for Python.

libzmq counts messages, not bytes, and tells nobody what a client has left unread. But it calls a
function when it is done with a message whose memory is ours. So after some bytes each reply is such
a *marker*: replies of one client leave in order, so when the marker has left, all before it have.

No client may have more waiting than is still free for all: one gets half, of many each gets a
share, and something is always left for the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, register_jitable

from streamrnn.kernels.jit import Linked, jit
from streamrnn.kernels.memory import copy_bytes, load_i64, load_u8, store_i64
from streamrnn.kernels.pointers import field_address, pointer_to
from streamrnn.kernels.structs import I64, Struct
from streamrnn.kernels.virtual_memory import address_of
from streamrnn_server.shard.libzmq import free_memory, get_memory

__all__ = [
    "MARKER_BYTES",
    "AskBucket",
    "Clients",
    "ClientsStruct",
    "ask_bucket_at",
    "asks_of",
    "charge_ask",
    "charge_reply",
    "find_client",
    "forget_address",
    "forget_marker",
    "make_marker",
    "may_ask",
    "may_reply",
    "needs_marker",
]

_ASK_OVERHEAD_BYTES = 1024  # of a message for Python: its frame, and what Python makes of it
_REPLY_OVERHEAD_BYTES = 64  # libzmq's record of a message
_MARK_EVERY_BYTES = 4096
_NUM_CLIENTS_LOG2 = 14
_NUM_PLACES = 8  # where one client's account may be, side by side
_FIRST_PLACES = (1 << _NUM_CLIENTS_LOG2) - _NUM_PLACES
_MIX_A = 0x9E3779B97F4A7C15 - 2**64
_MIX_B = 0xBF58476D1CE4E5B9 - 2**64
_LOW_32 = 0xFFFFFFFF


class AskBucket(Struct):
    """A token bucket of requests that may still go to Python."""

    left: I64
    filled_ns: I64  # when it was filled last; 0: never


class Client(Struct):
    """The account of one routing id, or of some whose ids fall together."""

    key: I64  # a hash of the routing id
    sent_bytes: I64  # in markers and what came before them
    left_bytes: I64  # of those, what has left libzmq; its threads write it
    unmarked_bytes: I64  # sent since the last marker
    asked_bytes: I64  # passed to Python
    answered_bytes: I64  # of those, what Python is done with; Python writes it
    asks: AskBucket


class ClientsStruct(Struct):
    """All accounts of a shard, and their sums."""

    table: I64  # address of the accounts
    max_unread_bytes: I64
    max_asked_bytes: I64
    sent_bytes: I64
    left_bytes: I64
    asked_bytes: I64
    answered_bytes: I64
    forget: I64  # address of the function that libzmq calls when a marker has left


_CLIENT_BYTES = Client.dtype.itemsize
_client_at = pointer_to(Client)
ask_bucket_at = pointer_to(AskBucket)
# Before a marker's bytes: addresses of the account and of the sums, and what it counts for.
MARKER_BYTES = 24


class Clients:
    """The accounts' memory; fills a struct.

    Attributes
    ----------
    max_waiting_bytes : int
        What may wait outside of the shard, of both kinds.
    num_bytes : int
        That, and what the accounts take.
    """

    def __init__(self, max_unread_bytes: int, max_asked_bytes: int, struct: Any) -> None:
        self._accounts = np.zeros(1 << _NUM_CLIENTS_LOG2, Client.dtype)
        self._answered = self._accounts["answered_bytes"]
        self._struct = struct
        self.max_waiting_bytes = max_unread_bytes + max_asked_bytes
        self.num_bytes = self._accounts.nbytes + self.max_waiting_bytes
        struct["table"] = address_of(self._accounts)
        struct["max_unread_bytes"] = max_unread_bytes
        struct["max_asked_bytes"] = max_asked_bytes
        struct["forget"] = forget_address()

    def note_answered(self, client: int, num_bytes: int) -> None:
        """Note that Python is done with a message; called by one thread of Python alone."""
        self._answered[client] += num_bytes
        self._struct["answered_bytes"] += num_bytes


@intrinsic
def _add_atomically(typingctx: Any, target: types.Type, value: types.Type) -> Any:
    """Add to the int64 at an address that other threads add to."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@register_jitable
def _forget_marker(data: int, block: int) -> int:
    """Count that a marker has left libzmq, which no longer needs its memory."""
    _add_atomically(load_i64(block), load_i64(block + 16))
    _add_atomically(load_i64(block + 8), load_i64(block + 16))
    free_memory(block)
    return 0


@jit
def forget_marker(block: int) -> None:
    """Give back what `make_marker` has made, and libzmq has not taken."""
    _forget_marker(0, block)


_forget = Linked(_forget_marker, 2)


def forget_address() -> int:
    """Return the address of `_forget_marker`; compile or load it at first."""
    if _forget.address is None:
        _forget.compile()
    assert _forget.address is not None  # it has been compiled
    return int(_forget.address)


@jit
def _client(clients: ClientsStruct, number: int) -> Client:
    return _client_at(clients.table + number * _CLIENT_BYTES)


@jit
def _key_of(identity: int, num_bytes: int) -> int:
    """Return a hash of a routing id: random ids need no more, and who forges shares an account."""
    if num_bytes >= 8:
        first, last = load_i64(identity), load_i64(identity + num_bytes - 8)
    else:
        first, last = 0, num_bytes
        for k in range(num_bytes):
            first = (first << 8) | load_u8(identity + k)
    key = (first ^ (last * _MIX_A)) * _MIX_B
    return key ^ ((key >> 32) & _LOW_32)


@jit
def find_client(clients: ClientsStruct, identity: int, num_bytes: int) -> int:
    """Return the number of a routing id's account; one for whom nothing waits may lose its own."""
    key = _key_of(identity, num_bytes)
    first = key & _FIRST_PLACES
    idle = -1
    for number in range(first, first + _NUM_PLACES):
        client = _client(clients, number)
        if client.key == key:
            return number
        is_idle = client.sent_bytes == client.left_bytes
        if idle < 0 and is_idle and client.asked_bytes == client.answered_bytes:
            idle = number
    if idle < 0:
        return first  # a crowd shares one
    client = _client(clients, idle)
    client.key = key
    client.unmarked_bytes = 0
    client.asks.filled_ns = 0
    return idle


@jit
def asks_of(clients: ClientsStruct, number: int) -> AskBucket:
    """Return an account's token bucket."""
    return ask_bucket_at(field_address(_client(clients, number), "asks"))


@jit
def _fits(own: int, of_all: int, max_bytes: int, num_bytes: int) -> bool:
    """Tell whether so many bytes more may wait; one that is too large alone has its turn too."""
    free = max_bytes - of_all - num_bytes
    return own + num_bytes <= free or (own == 0 and 2 * of_all <= max_bytes)


@jit
def may_ask(clients: ClientsStruct, number: int, num_bytes: int) -> bool:
    """Tell whether a client may have so many bytes more wait for Python."""
    client = _client(clients, number)
    own = client.asked_bytes - client.answered_bytes
    of_all = clients.asked_bytes - clients.answered_bytes
    return _fits(own, of_all, clients.max_asked_bytes, num_bytes + _ASK_OVERHEAD_BYTES)


@jit
def charge_ask(clients: ClientsStruct, number: int, num_bytes: int) -> int:
    """Count what waits for Python; return what `Clients.note_answered` is to take off again."""
    num_bytes += _ASK_OVERHEAD_BYTES
    _client(clients, number).asked_bytes += num_bytes
    clients.asked_bytes += num_bytes
    return num_bytes


@jit
def may_reply(clients: ClientsStruct, number: int, num_bytes: int) -> bool:
    """Tell whether libzmq may keep so much more for a client."""
    client = _client(clients, number)
    own = client.sent_bytes - client.left_bytes
    of_all = clients.sent_bytes - clients.left_bytes
    num_bytes += client.unmarked_bytes if own > 0 else 0
    return _fits(own, of_all, clients.max_unread_bytes, num_bytes)


@jit
def needs_marker(clients: ClientsStruct, number: int, num_bytes: int) -> bool:
    """Tell whether a client's next reply must be a marker."""
    return _client(clients, number).unmarked_bytes + num_bytes >= _MARK_EVERY_BYTES


@jit
def charge_reply(clients: ClientsStruct, number: int, num_bytes: int) -> None:
    """Count a reply that libzmq has taken, and that is no marker."""
    _client(clients, number).unmarked_bytes += num_bytes + _REPLY_OVERHEAD_BYTES


@jit
def make_marker(clients: ClientsStruct, number: int, data: int, num_bytes: int) -> int:
    """Copy a reply into memory of its own and count it; its address, 0 without memory.

    The reply begins `MARKER_BYTES` behind; ``clients.forget`` counts it as gone and frees it.
    """
    block = get_memory(MARKER_BYTES + num_bytes)
    if block == 0:
        return 0
    client = _client(clients, number)
    amount = client.unmarked_bytes + num_bytes + _REPLY_OVERHEAD_BYTES
    store_i64(block, field_address(client, "left_bytes"))
    store_i64(block + 8, field_address(clients, "left_bytes"))
    store_i64(block + 16, amount)
    copy_bytes(block + MARKER_BYTES, data, num_bytes)
    client.unmarked_bytes = 0
    client.sent_bytes += amount
    clients.sent_bytes += amount
    return block
