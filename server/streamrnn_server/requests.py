"""Requests on their way through a shard: fixed records, and the queues that they wait in.

A record is taken when a message has arrived and given back when it has been answered. A link
stands for a record in 32 bits: its distance from the pool's start in units of 64 bytes, plus 1
(0 is nobody). A stream's waiting requests form a ring that its slot's header enters at the last
one; a batch, and an `open` of many streams, is a record of its own with one child record for each
stream.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i32, load_i64, load_u16, store_i32, store_i64, store_u16
from streamrnn.state.slab import NUM_WAITING, TAIL, address_of, reserve, touch

__all__ = [
    "RequestPool",
    "append_to_list",
    "first_waiting",
    "give_request",
    "link_of",
    "num_free",
    "pop_waiting",
    "push_waiting",
    "record_of",
    "take_from_list",
    "take_request",
]

# What a request asks for. COLD: Python's business.
(COLD, STEP, RESET, OPEN, CLOSE, BATCH, OPEN_MANY) = range(7)
# Only Python sends these, through the PAIR. PLACE: make a stream of a record.
(EXPORT, SNAPSHOT, SYNC, PLACE, ROLLBACK, SYNC_ALL) = range(7, 13)
# The form of x, and so of y.
(FORM_BIN, FORM_ARRAY) = range(2)

# A record, in bytes from its address; int64 but for the three areas at its end.
(
    NEXT,  # link of the next record in the list or ring that this one is in
    KIND,
    MSGID,  # -1 where it could not be read
    FIRST_SEQ,  # number of the first step, of the reset; 0 unnumbered
    NUM_STEPS,  # T; -1 until the request came to the head of its stream's queue
    PROGRESS,  # number of steps done
    X,  # address of x: in the message, then in the record or in a block
    Y,  # address of y; 0 while there is none
    PARENT,  # address of the batch's record, or 0
    RECEIVED_NS,
    HASH,  # of the canonical id
    STREAM_BYTES,  # length of the canonical id
    IDENTITY_BYTES,
    FORM,
    CODE,  # 0, or the error's number
    LAST_SEQ,  # the answer's
    X_COUNT,  # bytes of x, or number of its elements in the array form
    X_BLOCK,  # what to give back to the arena, or 0
    Y_BLOCK,
    MODEL,  # index; negative: not known yet, in a batch -1 - that of one with as long inputs
    WINDOW,  # asked for, then granted
    ITEM,  # place among the parent's children
    NUM_ITEMS,  # number of children
    NUM_LEFT,  # number of children not done
    DETAIL,  # four numbers for the error's words
    _DETAIL_1,
    _DETAIL_2,
    _DETAIL_3,
    FIRST_CHILD,  # link
    SIBLING,  # link of the next child of the same parent
    STREAMS,  # address of the first stream id, in the message
    SEQS,  # address of the first number, in the message, or 0
) = range(0, 256, 8)
Y_COUNT = STREAMS  # bytes of y, once x has been looked at
DURABLE_SEQ = SEQS  # the answer's, once there is one
IDENTITY = 256  # whom to answer: at most 255 bytes
STREAM = 512  # canonical id: at most 129 bytes, zeros up to 16
OWNER = 648  # int64: number of the user, where there are users
INLINE_X = 704  # x, if it is small enough
MAX_INLINE_X_BYTES = 4096

# Words of the pool.
(_MEMORY, _STRIDE, _NUM_FREE, _FREE, _FRESH) = range(0, 40, 8)
_UNIT_LOG2 = 6
_UNIT_BYTES = 1 << _UNIT_LOG2


class RequestPool:
    """The memory of all records; compiled code works on it through ``address``.

    Parameters
    ----------
    num_records : int
        How many requests can be on their way at once.
    inline_x_bytes : int
        Largest x that a record holds itself; at most `MAX_INLINE_X_BYTES` are granted.

    Attributes
    ----------
    address : int
        What the compiled functions of this module take as ``pool``.
    inline_x_bytes : int
        As granted.
    num_bytes : int
        The size of all records.
    """

    def __init__(self, num_records: int, inline_x_bytes: int) -> None:
        self.inline_x_bytes = min(-(-inline_x_bytes // 64) * 64, MAX_INLINE_X_BYTES)
        stride = INLINE_X + self.inline_x_bytes
        self.num_bytes = num_records * stride
        self._memory = reserve(self.num_bytes, huge_pages=True)
        touch(self._memory)
        memory = address_of(self._memory)
        self._words: NDArray[np.int64] = np.array(
            [memory, stride, num_records, 0, memory], np.int64
        )
        self.address = address_of(self._words)


@jit
def num_free(pool: int) -> int:
    """Return how many records can be taken.

    Parameters
    ----------
    pool : int
        Address of the pool.

    Returns
    -------
    int
    """
    return load_i64(pool + _NUM_FREE)


@jit
def take_request(pool: int) -> int:
    """Take a record. The last one given back comes first, for it is still in the cache.

    Parameters
    ----------
    pool : int
        Address of a pool that has a free record.

    Returns
    -------
    int
        Its address; with no parent, no children, no blocks, no error and nothing done.
    """
    link = load_i64(pool + _FREE)
    if link != 0:
        request = record_of(pool, link)
        store_i64(pool + _FREE, load_i64(request + NEXT))
    else:
        request = load_i64(pool + _FRESH)
        store_i64(pool + _FRESH, request + load_i64(pool + _STRIDE))
    store_i64(pool + _NUM_FREE, load_i64(pool + _NUM_FREE) - 1)
    store_i64(request + NUM_STEPS, -1)
    store_i64(request + PROGRESS, 0)
    store_i64(request + Y, 0)
    store_i64(request + PARENT, 0)
    store_i64(request + CODE, 0)
    store_i64(request + X_BLOCK, 0)
    store_i64(request + Y_BLOCK, 0)
    store_i64(request + FIRST_CHILD, 0)
    return request


@jit
def give_request(pool: int, request: int) -> None:
    """Give a record back.

    Parameters
    ----------
    pool : int
        Address of the pool.
    request : int
        Address of the record, which is in no list.
    """
    store_i64(request + NEXT, load_i64(pool + _FREE))
    store_i64(pool + _FREE, link_of(pool, request))
    store_i64(pool + _NUM_FREE, load_i64(pool + _NUM_FREE) + 1)


@jit
def record_of(pool: int, link: int) -> int:
    """Return the record that a link stands for.

    Parameters
    ----------
    pool : int
        Address of the pool.
    link : int
        Not 0.

    Returns
    -------
    int
        The record's address.
    """
    return load_i64(pool + _MEMORY) + (link - 1) * _UNIT_BYTES


@jit
def link_of(pool: int, request: int) -> int:
    """Return the link that stands for a record.

    Parameters
    ----------
    pool : int
        Address of the pool.
    request : int
        The record's address.

    Returns
    -------
    int
        Never 0; it fits in an i32.
    """
    return ((request - load_i64(pool + _MEMORY)) >> _UNIT_LOG2) + 1


@jit
def append_to_list(pool: int, ends: int, request: int) -> None:
    """Append a record to a list.

    Parameters
    ----------
    pool : int
        Address of the pool.
    ends : int
        Address of two int64: the list's first and last record, as links.
    request : int
        Address of the record, which is in no list.
    """
    link = link_of(pool, request)
    store_i64(request + NEXT, 0)
    if load_i64(ends) == 0:
        store_i64(ends, link)
    else:
        store_i64(record_of(pool, load_i64(ends + 8)) + NEXT, link)
    store_i64(ends + 8, link)


@jit
def take_from_list(pool: int, ends: int) -> int:
    """Take the first record of a list.

    Parameters
    ----------
    pool : int
        Address of the pool.
    ends : int
        As for `append_to_list`.

    Returns
    -------
    int
        The record's address; 0 if the list is empty.
    """
    link = load_i64(ends)
    if link == 0:
        return 0
    request = record_of(pool, link)
    store_i64(ends, load_i64(request + NEXT))
    return request


@jit
def push_waiting(pool: int, header: int, request: int) -> None:
    """Let a request wait behind the others of its stream.

    Parameters
    ----------
    pool : int
        Address of the pool.
    header : int
        Address of the stream's header.
    request : int
        Address of the record, which is in no list.
    """
    link = link_of(pool, request)
    tail = load_i32(header + TAIL)
    if tail == 0:
        store_i64(request + NEXT, link)
    else:
        last = record_of(pool, tail)
        store_i64(request + NEXT, load_i64(last + NEXT))
        store_i64(last + NEXT, link)
    store_i32(header + TAIL, link)
    store_u16(header + NUM_WAITING, load_u16(header + NUM_WAITING) + 1)


@jit
def first_waiting(pool: int, header: int) -> int:
    """Return the request whose turn it is.

    Parameters
    ----------
    pool : int
        Address of the pool.
    header : int
        Address of the stream's header.

    Returns
    -------
    int
        The record's address; 0 if none waits.
    """
    tail = load_i32(header + TAIL)
    if tail == 0:
        return 0
    return record_of(pool, load_i64(record_of(pool, tail) + NEXT))


@jit
def pop_waiting(pool: int, header: int) -> None:
    """Take the request whose turn it is out of its stream's queue.

    Parameters
    ----------
    pool : int
        Address of the pool.
    header : int
        Address of the header of a stream for which a request waits.
    """
    tail = load_i32(header + TAIL)
    last = record_of(pool, tail)
    first = load_i64(last + NEXT)
    if first == tail:
        store_i32(header + TAIL, 0)
    else:
        store_i64(last + NEXT, load_i64(record_of(pool, first) + NEXT))
    store_u16(header + NUM_WAITING, load_u16(header + NUM_WAITING) - 1)
