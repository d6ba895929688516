"""Queues of requests: lists in the shard, and a ring for each stream."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.structs import I64, Struct
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.requests.request import Pool, Request, link_of, request_at, request_of

__all__ = [
    "Queue",
    "append",
    "first_waiting",
    "pop_first",
    "pop_waiting",
    "push_first",
    "push_waiting",
]


@jit
def append(pool: Pool, queue: Queue, request: Request) -> None:
    """Append a request, which is in no queue."""
    link = link_of(pool, request)
    request.next = 0
    if queue.first == 0:
        queue.first = link
    else:
        request_of(pool, queue.last).next = link
    queue.last = link


@jit
def pop_first(pool: Pool, queue: Queue) -> Request:
    """Take the first request of a queue; a null one if there is none."""
    if queue.first == 0:
        return request_at(0)
    request = request_of(pool, queue.first)
    queue.first = request.next
    return request


@jit
def push_waiting(pool: Pool, header: Header, request: Request) -> None:
    """Let a request wait behind the others of its stream."""
    link = link_of(pool, request)
    if header.tail == 0:
        request.next = link
    else:
        last = request_of(pool, header.tail)
        request.next = last.next
        last.next = link
    header.tail = link
    header.num_waiting += 1


@jit
def push_first(pool: Pool, header: Header, request: Request) -> None:
    """Let a request of the shard's own wait before the others of its stream, of which there are.

    It does not count: as many may come of the client's as before.
    """
    last = request_of(pool, header.tail)
    request.next = last.next
    last.next = link_of(pool, request)


@jit
def first_waiting(pool: Pool, header: Header) -> Request:
    """Return the request whose turn it is; a null one if none waits for the stream."""
    if header.tail == 0:
        return request_at(0)
    return request_of(pool, request_of(pool, header.tail).next)


@jit
def pop_waiting(pool: Pool, header: Header) -> None:
    """Take the request whose turn it is out of its stream's queue."""
    last = request_of(pool, header.tail)
    if last.next == header.tail:
        header.tail = 0
    else:
        last.next = request_of(pool, last.next).next
    header.num_waiting -= 1


class Queue(Struct):
    """A list of requests: links of the first one, 0 if there is none, and of the last one."""

    first: I64
    last: I64
