"""Write buffer: what goes to the GPU with a batch, and what comes back."""

from __future__ import annotations

from streamrnn.kernels.cuda.launches import first_input
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    load_i32,
    load_i64,
    store_i32,
    store_u8,
)
from streamrnn_server.shard.requests.request import request_at
from streamrnn_server.shard.streams.row_location import is_row_on_gpu
from streamrnn_server.shard.structs import Model, RowLocation, Shard

__all__ = ["empty_batch", "fill_batch", "find_checkpoint_rows", "steps_together"]

_MAX_LOOKED_AHEAD = 256


@jit
def find_checkpoint_rows(shard: Shard, slots: int) -> int:
    """List rows on the GPU that the checkpoint copies next; return how many there are.

    ``slots`` is the address of int32[num_slots], for their slots.
    """
    if shard.is_checkpointing == 0:
        return 0
    checkpoint_slots, place = shard.checkpoint_slots, shard.checkpoint_position
    num_rows = 0
    for k in range(place, min(place + _MAX_LOOKED_AHEAD, shard.num_checkpoint_slots)):
        slot = load_i32(checkpoint_slots + 4 * k)
        if is_row_on_gpu(shard, slot):
            store_i32(slots + 4 * num_rows, slot)
            num_rows += 1
    return num_rows


@jit
def steps_together(shard: Shard, num_rows: int, max_rows: int, max_steps: int) -> int:
    """Return how many steps of a batch's streams may be one launch.

    It is 1 as soon as another stream is ready, for streams join at every batch, or one of these has
    but one step to go.
    """
    if num_rows > max_rows or shard.num_ready != 0:
        return 1
    requests = shard.batch_requests
    num_steps = max_steps
    for row in range(num_rows):
        request = request_at(load_i64(requests + 8 * row))
        left = request.num_steps - request.progress
        num_steps = min(num_steps, left)
    return num_steps


@jit
def fill_batch(shard: Shard, model: Model, num_rows: int, num_steps: int, buffer: int) -> None:
    """Write a batch's slots, int32[num_rows], and at `first_input` num_rows * num_steps inputs."""
    row_locations, first_slot = shard.row_locations, model.first_slot
    slots, xs = shard.batch_slots, shard.xs
    row_bytes = num_steps * model.step_bytes
    inputs = buffer + 4 * first_input(num_rows)
    for row in range(num_rows):
        slot = load_i64(slots + 8 * row)
        store_i32(buffer + 4 * row, slot - first_slot)
        store_u8(row_locations + slot, RowLocation.GPU)
        copy_bytes(inputs + row * row_bytes, load_i64(xs + 8 * row), row_bytes)


@jit
def empty_batch(shard: Shard, model: Model, num_rows: int, num_steps: int, buffer: int) -> None:
    """Copy num_rows * num_steps outputs to where their requests want them."""
    ys, y_bytes = shard.ys, num_steps * model.y_bytes
    for row in range(num_rows):
        copy_bytes(load_i64(ys + 8 * row), buffer + row * y_bytes, y_bytes)
