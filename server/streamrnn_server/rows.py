"""Where the newest row of a stream is, in a shard whose waves a GPU computes.

The rows live there. What writes a row on the way of a request (an open, a reset, a record) writes
the host's, as without a GPU, and notes it; before the next wave it goes over. What reads one (an
export, a checkpoint) waits until it has been brought here. Without a GPU there is no table of
places, and every row is here.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    store_i32,
    store_i64,
    store_u8,
)
from streamrnn.state import slab as h
from streamrnn_server import layout as w
from streamrnn_server import requests as r
from streamrnn_server.slots import header_of, make_ready, model_of

__all__ = [
    "ask_for_row",
    "empty_wave",
    "fill_wave",
    "find_rows_to_save",
    "is_away",
    "let_askers_go_on",
    "note_written",
    "steps_together",
]

_MAX_LOOKED_AHEAD = 256


@jit
def note_written(shard: int, slot: int) -> None:
    """Note that the host's row of a stream is the newest.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slot : int
        The stream's slot.
    """
    places = load_i64(shard + w.PLACES)
    if places == 0 or load_u8(places + slot) == w.ROW_HERE:
        return
    store_u8(places + slot, w.ROW_HERE)
    number = load_i64(shard + w.NUM_WRITTEN)
    store_i32(load_i64(shard + w.WRITTEN) + 4 * number, slot)
    store_i64(shard + w.NUM_WRITTEN, number + 1)


@jit
def is_away(shard: int, slot: int) -> bool:
    """Tell whether the newest row of a stream is on the GPU alone.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slot : int
        The stream's slot.

    Returns
    -------
    bool
    """
    places = load_i64(shard + w.PLACES)
    return places != 0 and load_u8(places + slot) == w.ROW_AWAY


@jit
def ask_for_row(shard: int, slot: int) -> None:
    """Have a stream wait until its row is here, before the next wave.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slot : int
        The stream's slot, which is in no list.
    """
    number = load_i64(shard + w.NUM_ASKED_FOR)
    store_i32(load_i64(shard + w.ASKED_FOR) + 4 * number, slot)
    store_i64(shard + w.NUM_ASKED_FOR, number + 1)


@jit
def let_askers_go_on(shard: int) -> None:
    """Let the streams whose rows have been brought here have their turn.

    Parameters
    ----------
    shard : int
        Address of the shard.
    """
    slots = load_i64(shard + w.ASKED_FOR)
    for k in range(load_i64(shard + w.NUM_ASKED_FOR)):
        slot = load_i32(slots + 4 * k)
        header = header_of(shard, slot)
        make_ready(shard, model_of(shard, load_u16(header + h.MODEL)), slot, header)
    store_i64(shard + w.NUM_ASKED_FOR, 0)


@jit
def find_rows_to_save(shard: int, slots: int) -> int:
    """Find rows that the checkpoint being made copies next, and that are not here.

    Parameters
    ----------
    shard : int
        Address of the shard.
    slots : int
        Address of int32[num_slots], for their slots.

    Returns
    -------
    int
        How many there are.
    """
    if load_i64(shard + w.IS_SAVING) == 0:
        return 0
    saved, place = load_i64(shard + w.SAVED), load_i64(shard + w.SAVED_PLACE)
    num_rows = 0
    for k in range(place, min(place + _MAX_LOOKED_AHEAD, load_i64(shard + w.NUM_SAVED))):
        slot = load_i32(saved + 4 * k)
        if is_away(shard, slot):
            store_i32(slots + 4 * num_rows, slot)
            num_rows += 1
    return num_rows


@jit
def steps_together(shard: int, num_rows: int, max_rows: int, max_steps: int) -> int:
    """Tell how many steps of a wave's streams may be one launch: others join at every wave.

    Parameters
    ----------
    shard : int
        Address of the shard, whose WAVE_REQUESTS are filled.
    num_rows : int
        The number of rows.
    max_rows, max_steps : int
        The most that the GPU takes at once.

    Returns
    -------
    int
        1 as soon as another stream is ready, or one of these has but one step to go.
    """
    if num_rows > max_rows or load_i64(shard + w.NUM_READY) != 0:
        return 1
    requests = load_i64(shard + w.WAVE_REQUESTS)
    num_steps = max_steps
    for row in range(num_rows):
        request = load_i64(requests + 8 * row)
        left = load_i64(request + r.NUM_STEPS) - load_i64(request + r.PROGRESS)
        num_steps = min(num_steps, left)
    return num_steps


@jit
def fill_wave(shard: int, model: int, num_rows: int, num_steps: int, buffer: int) -> None:
    """Write a wave's slots and inputs one after the other.

    Parameters
    ----------
    shard : int
        Address of the shard, whose WAVE_SLOTS and XS are filled.
    model : int
        Address of the record of the wave's model.
    num_rows, num_steps : int
        Of the wave.
    buffer : int
        Address of int32[num_rows] and, behind it, of num_rows * num_steps inputs.
    """
    places, first_slot = load_i64(shard + w.PLACES), load_i64(model + w.FIRST_SLOT)
    slots, xs = load_i64(shard + w.WAVE_SLOTS), load_i64(shard + w.XS)
    row_bytes = num_steps * load_i64(model + w.STEP_BYTES)
    inputs = buffer + 4 * num_rows
    for row in range(num_rows):
        slot = load_i64(slots + 8 * row)
        store_i32(buffer + 4 * row, slot - first_slot)
        store_u8(places + slot, w.ROW_AWAY)
        copy_bytes(inputs + row * row_bytes, load_i64(xs + 8 * row), row_bytes)


@jit
def empty_wave(shard: int, model: int, num_rows: int, num_steps: int, buffer: int) -> None:
    """Put a wave's outputs where their requests want them.

    Parameters
    ----------
    shard : int
        Address of the shard, whose YS are filled.
    model : int
        Address of the record of the wave's model.
    num_rows, num_steps : int
        Of the wave.
    buffer : int
        Address of num_rows * num_steps outputs.
    """
    ys, y_bytes = load_i64(shard + w.YS), num_steps * load_i64(model + w.Y_BYTES)
    for row in range(num_rows):
        copy_bytes(load_i64(ys + 8 * row), buffer + row * y_bytes, y_bytes)
