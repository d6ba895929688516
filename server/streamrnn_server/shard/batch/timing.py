"""Times of single steps: what a batch adds to the messages in it that are timed."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.pointers import address
from streamrnn_server.shard.batch.schedule import batch_of
from streamrnn_server.shard.memory.step_times import note_batch_of, stamp
from streamrnn_server.shard.requests.request import request_at
from streamrnn_server.shard.structs import Shard

__all__ = ["note_batch"]


@jit
def note_batch(shard: Shard, num_rows: int) -> None:
    """Note a committed batch, whose requests still are, for those in it that are timed."""
    times = shard.step_times
    if times.num_under_way == 0:
        return
    committed_ns = stamp(times)
    requests = batch_of(shard).requests
    for row in range(num_rows):
        request = request_at(requests[row])
        if request.parent != 0:
            request = request_at(request.parent)
        if request.timing != 0:
            note_batch_of(times, request.timing, address(request), num_rows, committed_ns)
