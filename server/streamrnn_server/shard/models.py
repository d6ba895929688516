"""Models that come, go and are swapped while a shard runs: what Python tells of them."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes, load_u8, store_u8
from streamrnn.kernels.pointers import address
from streamrnn.kernels.virtual_memory import HUGE_PAGE_BYTES
from streamrnn_server.shard.memory.budget import release_pages
from streamrnn_server.shard.memory.slab import MODEL_BYTES, model_of
from streamrnn_server.shard.structs import Command, CommandKind, Model, Shard
from streamrnn_server.shard.to_python import tell_done

__all__ = ["change_models", "tell_swapped"]


@jit
def change_models(shard: Shard, command: Command) -> None:
    """Do a command that concerns a model, and answer it, or let `tell_swapped` do that."""
    what, index = command.what, command.model
    if what == CommandKind.LOAD:
        copy_bytes(address(model_of(shard, index)), command.address, MODEL_BYTES)
        model = model_of(shard, index)
        shard.num_models = max(shard.num_models, index + 1)
        shard.max_inputs = max(shard.max_inputs, model.step_bytes // 4)
        shard.batch_y_stride = max(shard.batch_y_stride, (model.y_bytes + 63) // 64 * 64)
        if shard.journal.socket != 0:
            shard.journal.row_stride = max(shard.journal.row_stride, model.state_bytes)
    elif what == CommandKind.ALIAS:
        shard.aliases, shard.num_aliases = command.address, command.seq
    elif what == CommandKind.SWAP:
        model = model_of(shard, index)
        model.successor, model.policy = command.slot, command.digest
        if command.slot >= 0:
            shard.num_swaps_told += 1 if model.swap_token == 0 else 0
            model.swap_token = command.msgid
            return
    elif not _unload(shard, model_of(shard, index)):
        tell_done(shard, command.msgid, 0)
        return
    tell_done(shard, command.msgid, 1)


@jit
def tell_swapped(shard: Shard) -> None:
    """Tell Python of each swap that has been begun for all streams that had work when it came."""
    if shard.num_swaps_told == 0:
        return
    for index in range(shard.num_models):
        model = model_of(shard, index)
        if model.swap_token != 0 and model.ready.first == 0:
            tell_done(shard, model.swap_token, 1)
            model.swap_token = 0
            shard.num_swaps_told -= 1


@jit
def _unload(shard: Shard, model: Model) -> bool:
    """Forget a model that no stream uses; false if one does."""
    if model.num_taken > 0:
        return False
    rows = model.first_row + model.first_slot * model.row_bytes
    num_units = (shard.max_streams * model.row_bytes + HUGE_PAGE_BYTES - 1) // HUGE_PAGE_BYTES
    for unit in range(num_units):
        if load_u8(model.units + unit):
            release_pages(shard.budget, rows + unit * HUGE_PAGE_BYTES, HUGE_PAGE_BYTES)
            store_u8(model.units + unit, 0)
    # Its headers still take memory, and count. It keeps its index, which requests and entries of
    # the journal may still have, and nothing fits it any more.
    model.step_bytes, model.name_bytes, model.family, model.successor = -1, -1, -1, -1
    model.num_fresh, model.free_slot = 0, 0
    return True
