"""Where the headers, rows, models and write buffers of a shard lie."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes
from streamrnn.kernels.pointers import address
from streamrnn_server.shard.memory import header as h
from streamrnn_server.shard.memory.header import Header, header_at
from streamrnn_server.shard.memory.kept_inputs import KeptInputs, clear_inputs
from streamrnn_server.shard.structs import (
    DISK_BUFFER_STRUCT_BYTES,
    HISTORY_BYTES,
    DiskBuffer,
    History,
    Model,
    Shard,
    disk_buffer_at,
    history_at,
    model_at,
)

__all__ = [
    "MODEL_BYTES",
    "begin_row",
    "disk_buffer_of",
    "header_of",
    "history_of",
    "kept_inputs_of",
    "model_of",
    "row_of",
    "slot_of",
]


MODEL_BYTES = Model.dtype.itemsize


@jit
def header_of(shard: Shard, slot: int) -> Header:
    """Return the header of a slot."""
    return header_at(shard.headers + slot * h.HEADER_BYTES)


@jit
def slot_of(shard: Shard, header: Header) -> int:
    """Return the slot of a header in the shard's table."""
    return (address(header) - shard.headers) // h.HEADER_BYTES


@jit
def history_of(shard: Shard, slot: int) -> History:
    """Return the history of a slot; there is none without a state directory."""
    return history_at(shard.histories + slot * HISTORY_BYTES)


@jit
def model_of(shard: Shard, index: int) -> Model:
    """Return a model by its index."""
    return model_at(shard.models + index * MODEL_BYTES)


@jit
def disk_buffer_of(shard: Shard, number: int) -> DiskBuffer:
    """Return a write buffer by its number."""
    return disk_buffer_at(shard.disk_buffers + number * DISK_BUFFER_STRUCT_BYTES)


@jit
def row_of(model: Model, slot: int) -> int:
    """Return the address of a slot's row."""
    return model.first_row + slot * model.row_bytes


@jit
def kept_inputs_of(model: Model, slot: int) -> KeptInputs:
    """Return where the inputs of a slot are kept, of a model that keeps them."""
    at = row_of(model, slot) + model.state_bytes
    return KeptInputs(at, model.max_kept, model.step_bytes)


@jit
def begin_row(model: Model, slot: int) -> None:
    """Let a slot have the state before a first step."""
    copy_bytes(row_of(model, slot), model.initial_row, model.state_bytes)
    if model.max_kept > 0:
        clear_inputs(kept_inputs_of(model, slot))
