"""Row location: whether a stream's newest row is on the host, on the GPU, or on both.

Where a GPU computes the batches, the rows live there. A request that writes a row (an open, a
reset, a record) writes the host's and notes it; it is copied over before the next batch. A request
that reads one (an export, a checkpoint) waits until it has been copied here. Without a GPU there is
no table of locations, and every row is here.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i32, load_u8, store_i32, store_u8
from streamrnn_server.shard.memory.slab import header_of, model_of
from streamrnn_server.shard.streams.slots import make_ready
from streamrnn_server.shard.structs import RowLocation, Shard

__all__ = ["ask_for_row", "is_away", "let_askers_go_on", "note_written"]


@jit
def note_written(shard: Shard, slot: int) -> None:
    """Note that the host's row of a stream is the newest."""
    places = shard.places
    if places == 0 or load_u8(places + slot) == RowLocation.HOST:
        return
    store_u8(places + slot, RowLocation.HOST)
    number = shard.num_written
    store_i32(shard.written + 4 * number, slot)
    shard.num_written = number + 1


@jit
def is_away(shard: Shard, slot: int) -> bool:
    """Tell whether the newest row of a stream is on the GPU alone."""
    places = shard.places
    return places != 0 and load_u8(places + slot) == RowLocation.GPU


@jit
def ask_for_row(shard: Shard, slot: int) -> None:
    """Make a stream in no list wait until its row has been copied here."""
    number = shard.num_asked_for
    store_i32(shard.asked_for + 4 * number, slot)
    shard.num_asked_for = number + 1


@jit
def let_askers_go_on(shard: Shard) -> None:
    """Resume the streams whose rows have been copied here."""
    slots = shard.asked_for
    for k in range(shard.num_asked_for):
        slot = load_i32(slots + 4 * k)
        header = header_of(shard, slot)
        make_ready(shard, model_of(shard, header.model), slot, header)
    shard.num_asked_for = 0
