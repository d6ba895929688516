"""Row location: whether a stream's newest row is on the host, on the GPU, or on both.

Where a GPU computes the batches, the rows live there. A request that writes a row (an open, a
reset, a record) writes the host's and notes it; it is copied over before the next batch. A request
that reads one (an export, a checkpoint) waits until it has been copied here. Without a GPU there is
no table of locations, and every row is here.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i32, load_u8, store_i32, store_u8
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.memory.slab import header_of, slot_of
from streamrnn_server.shard.streams.slots import make_ready
from streamrnn_server.shard.structs import RowLocation, Shard

__all__ = ["is_row_on_gpu", "note_written", "resume_awaiting_row", "wait_for_row"]


@jit
def note_written(shard: Shard, header: Header) -> None:
    """Note that the host's row of a stream is the newest."""
    row_locations, slot = shard.row_locations, slot_of(shard, header)
    if row_locations == 0 or load_u8(row_locations + slot) == RowLocation.HOST:
        return
    store_u8(row_locations + slot, RowLocation.HOST)
    number = shard.num_written
    store_i32(shard.written + 4 * number, slot)
    shard.num_written = number + 1


@jit
def is_row_on_gpu(shard: Shard, slot: int) -> bool:
    """Tell whether the newest row of a stream is on the GPU alone."""
    row_locations = shard.row_locations
    return row_locations != 0 and load_u8(row_locations + slot) == RowLocation.GPU


@jit
def wait_for_row(shard: Shard, header: Header) -> None:
    """Make a stream in no list wait until its row has been copied here."""
    number = shard.num_awaiting_row
    store_i32(shard.awaiting_row + 4 * number, slot_of(shard, header))
    shard.num_awaiting_row = number + 1


@jit
def resume_awaiting_row(shard: Shard) -> None:
    """Resume the streams whose rows have been copied here."""
    slots = shard.awaiting_row
    for k in range(shard.num_awaiting_row):
        make_ready(shard, header_of(shard, load_i32(slots + 4 * k)))
    shard.num_awaiting_row = 0
