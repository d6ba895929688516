"""Requests on their way through a shard: fixed records, and the queues that they wait in.

A record is taken when a message has arrived and given back when it has been answered. A link
stands for a record in 32 bits: its distance from the pool's start in units of 64 bytes, plus 1
(0 is null). A stream's waiting requests form a ring that its slot's header enters at the last
one; a batch, and an `open` of many streams, is a record of its own with one child record for each
stream.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any

import numpy as np

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, fill_bytes
from streamrnn.kernels.pointers import address, field_address, pointer_to
from streamrnn.kernels.structs import I16, I32, I64, Struct
from streamrnn.kernels.virtual_memory import address_of, reserve, touch
from streamrnn_client.protocol import MAX_ID_BYTES

__all__ = [
    "NEVER_NS",
    "NUM_KINDS",
    "REQUEST_BYTES",
    "Form",
    "Kind",
    "Pool",
    "Request",
    "RequestPool",
    "allocate_request",
    "free_request",
    "is_repeated",
    "link_of",
    "names_model",
    "request_at",
    "request_of",
    "set_identity",
    "set_stream",
]


class Kind(IntEnum):
    """What a request asks for."""

    FOR_PYTHON = 0  # whatever compiled code does not serve, malformed messages among it
    STEP = 1
    RESET = 2
    OPEN = 3
    CLOSE = 4
    STEP_MANY = 5
    OPEN_MANY = 6
    # Only Python sends these, through the PAIR.
    EXPORT = 7
    SNAPSHOT = 8
    SYNC = 9
    RESTORE = 10  # make a stream of a record
    ROLLBACK = 11
    SYNC_ALL = 12
    RECORD = 13  # record a stream, or tell which recording it has
    SWAP = 14  # the shard's own: its stream waits for the disk


NUM_KINDS = max(Kind) + 1


class Form(IntEnum):
    """The form of x, and so of y."""

    BIN = 0
    ARRAY = 1


MAX_INLINE_X_BYTES = 4096
_MAX_IDENTITY_BYTES = 255  # of a routing id; a peer may send any number
_MAX_STREAM_BYTES = 1 + MAX_ID_BYTES
_ZEROED_STREAM_BYTES = 16  # what a header keeps inline
NEVER_NS = 2**62


class Request(Struct):
    """A request from its arrival to its answer; behind it lies x, if it is small enough."""

    next: I64  # link of the next request in the queue or ring that this one is in
    kind: I32
    form: I16
    columns: I16  # whether a batch is answered in columns
    msgid: I64  # -1 where it could not be read
    first_seq: I64  # number of the first step, of the reset; 0 unnumbered
    num_steps: I64  # T; -1 until the request came to the head of its stream's queue
    progress: I64  # number of steps done
    x: I64  # address of x: in the message, then behind the request or in a block
    y: I64  # address of y; 0 while there is none
    y_bytes: I64  # of y, once x has been looked at
    parent: I64  # address of the batch's request, or 0
    received_ns: I64
    hash: I64  # of the canonical id
    stream_bytes: I64  # length of the canonical id
    code: I32  # 0, or the error's number
    identity_bytes: I32
    last_seq: I64  # the answer's
    durable_seq: I64
    x_count: I64  # bytes of x, or number of its elements in the array form
    x_block: I64  # what to give back to the arena, or 0
    y_block: I64
    model: I64  # index; negative: not known yet, in a batch -1 - that of one with as long inputs
    window: I64  # asked for, then granted
    item: I32  # place among the parent's children
    alias: I32  # number of the alias that an `open` names, from 1 on; 0: none, but one version
    num_items: I64  # number of children
    num_left: I64  # number of children not done
    detail: Annotated[Any, np.int64, (4,)]  # numbers for the error's message
    first_child: I64  # link
    sibling: I64  # link of the next child of the same parent
    streams: I64  # address of the first stream id, in the message
    seqs: I64  # address of the first number, in the message, or 0
    identity: Annotated[Any, np.uint8, (256,)]  # whom to answer
    stream: Annotated[Any, np.uint8, (136,)]  # canonical id: at most 129 bytes, zeros up to 16
    owner: I64  # number of the user, where there are users
    timing: I32  # number of its `StepTime`; 0: it is not timed
    client: I32  # number of the sender's account
    position: I64  # number of entries in the journal that must be durable before the answer
    received: I64  # the last step whose output the client has; 0 where it does not say
    received_at: I64  # of a batch: address of the first such number, in the message, or 0
    oldest_output: I64  # the answer's to an `open`; -1: it is not to be told
    max_wait_ns: I64  # of steps: those that have waited so long are not computed


class Pool(Struct):
    """The requests of a shard."""

    memory: I64  # address of the first
    stride: I64  # bytes from one to the next
    num_free: I64
    free: I64  # link of the one that was given back last
    fresh: I64  # address of the first one that was never taken


REQUEST_BYTES = Request.dtype.itemsize
_UNIT_LOG2 = 6
_UNIT_BYTES = 1 << _UNIT_LOG2
request_at = pointer_to(Request)


class RequestPool:
    """The memory of all requests.

    Parameters
    ----------
    num_requests : int
        How many can be on their way at once.
    inline_x_bytes : int
        Largest x that lies behind a request; at most `MAX_INLINE_X_BYTES` are granted.
    struct : Pool
        Filled.

    Attributes
    ----------
    inline_x_bytes : int
        As granted.
    num_bytes : int
        The size of all.
    """

    def __init__(self, num_requests: int, inline_x_bytes: int, struct: Any) -> None:
        self.inline_x_bytes = min(-(-inline_x_bytes // 64) * 64, MAX_INLINE_X_BYTES)
        stride = -(-(REQUEST_BYTES + self.inline_x_bytes) // _UNIT_BYTES) * _UNIT_BYTES
        self.num_bytes = num_requests * stride
        self._memory = reserve(self.num_bytes, huge_pages=True)
        touch(self._memory)
        struct["memory"] = struct["fresh"] = address_of(self._memory)
        struct["stride"], struct["num_free"] = stride, num_requests


@jit
def is_repeated(request: Request) -> bool:
    """Tell whether a client says that a numbered step or reset was answered to it before."""
    return 0 < request.first_seq <= request.received


@jit
def names_model(kind: int) -> bool:
    """Tell whether a request of some kind says which model it is for."""
    return kind in (Kind.OPEN, Kind.RESTORE, Kind.ROLLBACK)


@jit
def allocate_request(pool: Pool) -> Request:
    """Take a request from a pool that has a free one; nothing of it is done or known.

    The last one given back comes first, for it is still in the cache.
    """
    if pool.free != 0:
        request = request_of(pool, pool.free)
        pool.free = request.next
    else:
        request = request_at(pool.fresh)
        pool.fresh += pool.stride
    pool.num_free -= 1
    request.num_steps = -1
    request.progress = 0
    request.y = 0
    request.parent = 0
    request.code = 0
    request.model = -1
    request.received = 0
    request.oldest_output = -1
    request.alias = 0
    request.timing = 0
    request.x_block = 0
    request.y_block = 0
    request.first_child = 0
    return request


@jit
def set_identity(request: Request, identity: int, num_bytes: int) -> bool:
    """Note whom to answer; false if that is no routing id, and nothing is noted."""
    if num_bytes < 0 or num_bytes > _MAX_IDENTITY_BYTES:
        return False
    copy_bytes(field_address(request, "identity"), identity, num_bytes)
    request.identity_bytes = num_bytes
    return True


@jit
def set_stream(request: Request, stream: int, num_bytes: int) -> bool:
    """Note a canonical id; false if that is none, and nothing is noted."""
    if num_bytes < 0 or num_bytes > _MAX_STREAM_BYTES:
        return False
    fill_bytes(field_address(request, "stream"), _ZEROED_STREAM_BYTES, 0)
    copy_bytes(field_address(request, "stream"), stream, num_bytes)
    request.stream_bytes = num_bytes
    return True


@jit
def free_request(pool: Pool, request: Request) -> None:
    """Give a request back that is in no queue."""
    request.next = pool.free
    pool.free = link_of(pool, request)
    pool.num_free += 1


@jit
def request_of(pool: Pool, link: int) -> Request:
    """Return the request that a link stands for; a link is never 0."""
    return request_at(pool.memory + (link - 1) * _UNIT_BYTES)


@jit
def link_of(pool: Pool, request: Request) -> int:
    """Return the link that stands for a request; it fits in an i32."""
    return ((address(request) - pool.memory) >> _UNIT_LOG2) + 1
