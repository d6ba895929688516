"""What ends a request: it has an answer, or an error. Counting, too."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64, store_i64
from streamrnn_server import layout as w
from streamrnn_server import requests as r
from streamrnn_server.requests import append_to_list

__all__ = ["count", "fail", "finish"]


@jit
def count(shard: int, counter: int, number: int) -> None:
    """Add to a counter.

    Parameters
    ----------
    shard : int
        Address of the shard.
    counter : int
        One of the counters of `layout`.
    number : int
        How much.
    """
    at = load_i64(shard + w.COUNTERS_AT) + counter
    store_i64(at, load_i64(at) + number)


@jit
def finish(shard: int, request: int) -> None:
    """Note that a request is done. A child's parent is done with its last child.

    Parameters
    ----------
    shard : int
        Address of the shard. What can be answered is put on its list FINISHED, or, where replies
        wait for the disk, on UNCOVERED.
    request : int
        Address of the record, which is in no list.
    """
    parent = load_i64(request + r.PARENT)
    if parent != 0:
        num_left = load_i64(parent + r.NUM_LEFT) - 1
        store_i64(parent + r.NUM_LEFT, num_left)
        if num_left > 0:
            return
        request = parent
    ends = shard + w.FINISHED
    kinds = (r.STEP, r.RESET, r.OPEN, r.BATCH, r.OPEN_MANY)
    is_good = load_i64(request + r.CODE) == 0
    if load_i64(shard + w.IS_ALWAYS) and is_good and load_i64(request + r.KIND) in kinds:
        # What it did to its stream must be on disk before anybody learns of it.
        ends = shard + w.UNCOVERED
    append_to_list(load_i64(shard + w.POOL), ends, request)


@jit
def fail(
    shard: int,
    request: int,
    code: int,
    detail_0: int,
    detail_1: int,
    detail_2: int,
    detail_3: int,
) -> None:
    """Note that a request is done with an error.

    Parameters
    ----------
    shard : int
        Address of the shard.
    request : int
        Address of the record, which is in no list.
    code : int
        Number of the `ErrorCode`.
    detail_0, detail_1, detail_2, detail_3 : int
        Numbers for the error's words; `streamrnn_server.words` says which.
    """
    store_i64(request + r.CODE, code)
    store_i64(request + r.DETAIL, detail_0)
    store_i64(request + r.DETAIL + 8, detail_1)
    store_i64(request + r.DETAIL + 16, detail_2)
    store_i64(request + r.DETAIL + 24, detail_3)
    count(shard, w.NUM_ERRORS, 1)
    finish(shard, request)
