"""Batches: check one against its model, and give each child its input."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn_client.protocol import ErrorCode
from streamrnn_server.shard.memory.slab import header_of, model_of
from streamrnn_server.shard.requests.finish import fail
from streamrnn_server.shard.requests.request import Form, Request, request_of
from streamrnn_server.shard.streams.eviction import allocate_block
from streamrnn_server.shard.streams.owners import is_forbidden
from streamrnn_server.shard.streams.slots import find_stream
from streamrnn_server.shard.structs import REPLY_SLACK_BYTES, Shard

__all__ = ["prepare_batch"]

_MAX_ITEM_BYTES = 256  # of a batch's reply beside y, in whatever form


@jit
def prepare_batch(shard: Shard, parent: Request) -> bool:
    """Find a batch's model, check the length of X and allocate y; false after an error."""
    pool = shard.pool
    num_models = shard.num_models
    link = parent.first_child
    slot = -1
    while link != 0 and slot < 0:
        child = request_of(pool, link)
        slot = find_stream(shard, child)
        link = child.sibling
        if slot >= 0 and header_of(shard, slot).model == shard.lookup_model:
            slot = -1  # it is being looked up
        if slot >= 0 and is_forbidden(shard, header_of(shard, slot), child):
            slot = -1
    if slot >= 0:
        index = header_of(shard, slot).model
    elif shard.can_look_up:
        index = _model_by_size(shard, parent)
    else:
        return True  # each item says so for itself
    model = model_of(shard, index)
    num_items, form = parent.num_items, parent.form
    step_bytes, y_bytes = model.step_bytes, model.y_bytes
    if slot >= 0:
        parent.model = index
    else:  # known is how long its inputs are; the first stream that is found says the rest
        parent.model = -1 - index
        for k in range(num_models):
            if model_of(shard, k).step_bytes == step_bytes:
                y_bytes = max(y_bytes, model_of(shard, k).y_bytes)
    expected = num_items * step_bytes
    came = parent.x_count
    if form == Form.ARRAY:
        came *= 4
    if came != expected:
        fail(shard, parent, ErrorCode.WRONG_LENGTH, came, step_bytes, expected, form)
        return False
    reply_bytes = num_items * (2 * y_bytes + _MAX_ITEM_BYTES) + REPLY_SLACK_BYTES
    if reply_bytes > shard.out_bytes:
        fail(shard, parent, ErrorCode.TOO_LARGE, reply_bytes, shard.out_bytes)
        return False
    block = allocate_block(shard, num_items * y_bytes)
    if block == 0:
        fail(shard, parent, ErrorCode.BUSY)
        return False
    parent.y_block = block
    parent.y = block
    x = parent.x
    stride = step_bytes if form == Form.BIN else 2 * step_bytes
    link = parent.first_child
    while link != 0:
        child = request_of(pool, link)
        child.x = x
        child.x_count = step_bytes if form == Form.BIN else step_bytes // 4
        x += stride
        link = child.sibling
    return True


@jit
def _model_by_size(shard: Shard, parent: Request) -> int:
    """Guess the model of a batch with no stream in memory: the first that X fits."""
    num_values = parent.x_count
    if parent.form == Form.BIN:
        num_values //= 4
    num_items = parent.num_items
    for index in range(shard.num_models):
        if model_of(shard, index).step_bytes * num_items == 4 * num_values:
            return index
    return 0
