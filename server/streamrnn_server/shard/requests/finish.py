"""What ends a request: it has an answer, or an error."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn_server.shard.requests.queue import append
from streamrnn_server.shard.requests.request import Kind, Request, request_at
from streamrnn_server.shard.structs import Shard

__all__ = ["end_close", "fail", "finish", "set_error"]


@jit
def finish(shard: Shard, request: Request) -> None:
    """Note that a request, which is in no queue, is done; a parent is done with its last child."""
    if request.parent != 0:
        request = request_at(request.parent)
        request.num_left -= 1
        if request.num_left > 0:
            return
    # A chunk that was refused in its midst tells of the steps before that.
    is_refused = request.code != 0 and request.progress == 0
    if not shard.is_always or is_refused or not _is_change(request.kind):
        append(shard.pool, shard.finished, request)
    elif shard.journal.socket == 0:
        if request.code != 0:  # its stream is frozen, and no checkpoint has more of it
            append(shard.pool, shard.finished, request)
            return
        # What it did to its stream must be on disk before anybody learns of it.
        append(shard.pool, shard.awaiting_checkpoint, request)
    else:
        request.position = shard.journal.num_appended
        append(shard.pool, shard.awaiting_group, request)


@jit
def end_close(shard: Shard, request: Request) -> None:
    """Note that a close, which is in no queue, is done: the record is gone from the disk."""
    if shard.journal.socket != 0:
        request.position = shard.journal.num_appended
        append(shard.pool, shard.awaiting_group, request)
    else:
        append(shard.pool, shard.finished, request)


@jit
def _is_change(kind: int) -> bool:
    is_many = kind in (Kind.STEP_MANY, Kind.OPEN_MANY)
    return is_many or kind in (Kind.STEP, Kind.RESET, Kind.OPEN)


@jit
def set_error(request: Request, code: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> None:
    """Note a request's error, and numbers for its message; its caller ends it."""
    request.code = code
    request.detail[0] = a
    request.detail[1] = b
    request.detail[2] = c
    request.detail[3] = d


@jit
def fail(
    shard: Shard, request: Request, code: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0
) -> None:
    """End a request, which is in no queue, with an error."""
    set_error(request, code, a, b, c, d)
    shard.counters.num_errors += 1
    finish(shard, request)
