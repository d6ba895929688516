"""Receive what has arrived, decode it, and queue it for admission.

Nothing of a message is needed after `receive`: identity, stream id and x are copied into the
request's record (a message that is kept would pin 8 KiB of libzmq's buffer).
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes
from streamrnn.kernels.pointers import address, field_address
from streamrnn_client.protocol import MAX_BATCH, MAX_WINDOW, ErrorCode
from streamrnn_server.shard.libzmq import (
    cut_connection,
    monotonic_ns,
    msg_data,
    msg_more,
    msg_size,
    receive_frame,
)
from streamrnn_server.shard.memory.clients import find_client
from streamrnn_server.shard.memory.index import equal_bytes, hash64, prefetch_entry
from streamrnn_server.shard.memory.slab import model_of
from streamrnn_server.shard.memory.step_times import begin_timing, is_timed
from streamrnn_server.shard.requests.finish import fail, finish
from streamrnn_server.shard.requests.queue import append
from streamrnn_server.shard.requests.request import (
    NEVER_NS,
    REQUEST_BYTES,
    Form,
    Kind,
    Pool,
    Request,
    allocate_request,
    free_request,
    link_of,
    request_of,
    set_identity,
)
from streamrnn_server.shard.requests.versions import alias_of, version_now
from streamrnn_server.shard.streams.eviction import allocate_block
from streamrnn_server.shard.streams.owners import NO_OWNER, user_of
from streamrnn_server.shard.structs import Shard, ShardState
from streamrnn_server.shard.to_python import call_python
from streamrnn_server.shard.wire.decode import decode_request
from streamrnn_server.shard.wire.values import has_few_values, read_numbers, read_stream, read_uint

__all__ = ["receive"]

# An empty receive costs 0.5 µs: while streams have work, look for messages only so often.
_LOOK_AGAIN_NS = 20_000
_KEPT_FOR_PYTHON = 1024  # records for requests that Python makes
_HEAD_BYTES = 32  # enough to find the msgid
_MAX_TURN_BYTES = 2**20  # and the message that exceeds it: then others have their turn
_MAX_TURN_FRAMES = 4096  # of one message
_MAX_VALUES_FOR_PYTHON = 4 * MAX_BATCH  # in one message: each becomes an object
# Where steps say how long they may wait, more is taken at once, so that they wait where it counts.
_READ_AHEAD = 4  # batches
_READ_AHEAD_NS = 1_000_000_000  # since the last one that said so
_AUTOMATIC_ID_BYTES = 5  # of a routing id that libzmq gave: a zero, and a counter


@jit
def receive(shard: Shard) -> int:
    """Receive at most a batch's messages, or some batches', and decode them; return how many.

    Requests that a stream must serve are appended to ``shard.arrived``.
    """
    now = shard.now_ns
    just_looked = now - shard.last_empty_ns < _LOOK_AGAIN_NS
    if just_looked and shard.num_ready > 0:
        return 0
    state = shard.state
    if state >= ShardState.DRAINED or (state == ShardState.STOPPING and now > shard.stop_at_ns):
        return 0
    router, pool = shard.router, shard.pool
    identity = field_address(shard, "identity_message")
    num_messages, num_bytes, most = 0, 0, shard.max_rows
    if now < shard.read_ahead_until_ns:
        most *= _READ_AHEAD
    if shard.is_skipping:
        _skip_frames(shard, 0)
        if shard.is_skipping:
            return 1
    # A message may need a record for each item. Without free records it stays in the socket, until
    # at last the client's own socket blocks.
    while num_messages < most and pool.num_free > MAX_BATCH + _KEPT_FOR_PYTHON:
        if num_bytes > _MAX_TURN_BYTES or shard.is_skipping:
            break
        if receive_frame(router, identity) < 0:
            shard.last_empty_ns = now
            break
        if num_messages == 0:
            now = monotonic_ns(field_address(shard, "clock"))
            shard.now_ns = now
        num_messages += 1
        num_bytes += _take_message(shard, router, identity, pool)
    shard.counters.num_messages += num_messages
    return num_messages


@jit
def _take_message(shard: Shard, router: int, identity: int, pool: Pool) -> int:
    """Take the rest of the message whose identity frame is here; return its payload's bytes."""
    if not msg_more(identity):
        shard.counters.num_without_payload += 1
        return 0
    request = allocate_request(pool)
    num_bytes = msg_size(identity)
    if not set_identity(request, msg_data(identity), num_bytes):
        free_request(pool, request)
        _skip_frames(shard, 0)
        shard.counters.num_too_broken_to_answer += 1
        return 0
    request.client = find_client(shard.clients, field_address(request, "identity"), num_bytes)
    request.received_ns = shard.now_ns
    payload = field_address(shard, "payload_message")
    num_bytes = receive_frame(router, payload)
    data = msg_data(payload)
    is_unauthorised = not _note_user(shard, payload, request)
    max_bytes = shard.max_message_bytes
    num_decoded = num_bytes if num_bytes <= max_bytes else min(num_bytes, _HEAD_BYTES)
    kind = decode_request(data, num_decoded, request)
    if kind in (Kind.STEP, Kind.STEP_MANY) and request.max_wait_ns < NEVER_NS:
        shard.read_ahead_until_ns = shard.now_ns + _READ_AHEAD_NS
    if msg_more(payload):
        num_frames = _skip_frames(shard, 1)
        if shard.is_skipping:
            cut_connection(payload)  # nobody is served until libzmq has handed over all of them
        shard.counters.num_extra_frames += 1
        _refuse(shard, request, ErrorCode.MALFORMED, num_frames, 0)
    elif is_unauthorised:
        _refuse(shard, request, ErrorCode.FORBIDDEN, 0, 0)
    elif num_bytes > max_bytes:
        _refuse(shard, request, ErrorCode.TOO_LARGE, num_bytes, max_bytes)
    elif kind == Kind.FOR_PYTHON or (
        kind in (Kind.OPEN, Kind.OPEN_MANY) and not _find_model(shard, request)
    ):
        if not has_few_values(data, data + num_bytes, _MAX_VALUES_FOR_PYTHON):
            _refuse(shard, request, ErrorCode.BAD_PARAMS, 0, 0)
        elif call_python(shard, request, data, num_bytes):
            free_request(pool, request)
        else:
            _refuse(shard, request, ErrorCode.BUSY, 0, 0)
    elif not _keep(shard, request, data + num_bytes):
        fail(shard, request, ErrorCode.BUSY)
    elif request.first_child == 0 and kind in (Kind.STEP_MANY, Kind.OPEN_MANY):
        finish(shard, request)
    else:
        append(pool, shard.arrived, request)
        if kind in (Kind.STEP, Kind.STEP_MANY):
            _time(shard, request)
    return num_bytes


@jit
def _time(shard: Shard, request: Request) -> None:
    """Begin to time a message of steps, if that is one which is to be timed."""
    first = request
    if request.first_child != 0:
        first = request_of(shard.pool, request.first_child)
    # Steps without numbers are told apart by their messages' ids.
    if is_timed(first.hash, first.first_seq if first.first_seq > 0 else request.msgid):
        times, received_ns = shard.step_times, request.received_ns
        unread_ns = received_ns - max(times.looked_ns, shard.last_empty_ns)
        request.timing = begin_timing(
            times, address(request), first.hash, first.first_seq, received_ns, unread_ns
        )


@jit
def _skip_frames(shard: Shard, num_frames: int) -> int:
    """Drop the frames of a message behind some that were taken; return how many it has.

    If they are many, that is how many there were in this turn; ``is_skipping`` tells of the rest.
    """
    payload = field_address(shard, "payload_message")
    shard.is_skipping = 1
    while shard.is_skipping and num_frames < _MAX_TURN_FRAMES:
        is_there = receive_frame(shard.router, payload) >= 0
        num_frames += is_there
        shard.is_skipping = is_there and msg_more(payload)
    return num_frames


@jit
def _note_user(shard: Shard, message: int, request: Request) -> bool:
    """Note the sender's user id; False if there are users and it is none of them.

    Where there are users nobody may have an id that libzmq gave: the next who comes may get the
    same one, or take it, and with it what is still on its way to the one who had it.
    """
    if shard.users == 0:
        return True
    if request.identity_bytes == _AUTOMATIC_ID_BYTES and request.identity[0] == 0:
        return False
    user = user_of(shard, message)
    request.owner = user
    return user != NO_OWNER


@jit
def _refuse(shard: Shard, request: Request, code: int, detail_0: int, detail_1: int) -> None:
    """Answer a message of which nothing was kept, or count it if it has no msgid."""
    request.kind = Kind.FOR_PYTHON
    request.stream_bytes = 0
    if request.msgid < 0:
        shard.counters.num_too_broken_to_answer += 1
        free_request(shard.pool, request)
    else:
        fail(shard, request, code, detail_0, detail_1)


@jit
def _find_model(shard: Shard, request: Request) -> bool:
    """Find the model that an `open` names, or whose alias it does; nil means the only one."""
    name, num_bytes = request.x, request.x_count
    if name == 0:
        return shard.num_aliases == 1 and _take_alias(request, 0)
    for k in range(shard.num_aliases):
        alias = alias_of(shard, k)
        if alias.name_bytes == num_bytes and equal_bytes(alias.name, name, num_bytes):
            return _take_alias(request, k)
    for k in range(shard.num_models):
        model = model_of(shard, k)
        if model.name_bytes == num_bytes and equal_bytes(model.name, name, num_bytes):
            request.model = k
            # Whose streams were swapped away: those of it fit all versions now.
            return model.successor < 0 or _take_alias(request, model.family)
    return False


@jit
def _take_alias(request: Request, number: int) -> bool:
    request.alias = number + 1  # which version that means, its hash has a say in
    return True


@jit
def _keep(shard: Shard, request: Request, end: int) -> bool:
    """Copy what is still in the message; False if the arena is full."""
    kind = request.kind
    if kind in (Kind.STEP, Kind.STEP_MANY) and not _keep_x(shard, request, end):
        return False
    if kind in (Kind.STEP_MANY, Kind.OPEN_MANY):
        _make_children(shard, request, kind, end)
        return True
    _set_hash(shard, request)
    if request.alias != 0:
        request.model = version_now(shard, request)
    return True


@jit
def _keep_x(shard: Shard, request: Request, end: int) -> bool:
    x, length = request.x, request.x_count
    form = request.form
    num_values = length if form == Form.ARRAY else length // 4
    max_steps = MAX_WINDOW if request.kind == Kind.STEP else request.num_items
    if num_values > max_steps * shard.max_inputs:
        request.x = 0  # no stream takes so much: it is refused for its length, and not looked at
        return True
    num_bytes = length if form == Form.BIN else 8 * length
    target = address(request) + REQUEST_BYTES
    if num_bytes > shard.inline_x_bytes:
        target = allocate_block(shard, num_bytes)
        if target == 0:
            return False
        request.x_block = target
    request.x = target
    if form == Form.BIN:
        copy_bytes(target, x, num_bytes)
    else:  # float64, until the model is known
        read_numbers(x, end, length, target)
    return True


@jit
def _set_hash(shard: Shard, request: Request) -> None:
    hash_value = hash64(field_address(request, "stream"), request.stream_bytes)
    request.hash = hash_value
    prefetch_entry(shard.index, hash_value)


@jit
def _make_children(shard: Shard, parent: Request, kind: int, end: int) -> None:
    """Give each stream of a batch, or of an `open` of many, a record of its own."""
    pool = shard.pool
    num_items = parent.num_items
    at = parent.streams
    seqs_at = parent.seqs if kind == Kind.STEP_MANY else 0
    received_at = parent.received_at if kind == Kind.STEP_MANY else 0
    parent.num_left = num_items
    previous = parent
    for k in range(num_items):
        child = allocate_request(pool)
        if k == 0:
            parent.first_child = link_of(pool, child)
        else:
            previous.sibling = link_of(pool, child)
        previous = child
        seq = 0
        if seqs_at != 0:
            seq, seqs_at = read_uint(seqs_at, end)
        if received_at != 0:
            received, received_at = read_uint(received_at, end)
            child.received = received
        num_bytes, at = read_stream(at, end, field_address(child, "stream"))
        child.stream_bytes = num_bytes
        child.kind = Kind.STEP if kind == Kind.STEP_MANY else Kind.OPEN
        child.parent = address(parent)
        child.received_ns = parent.received_ns
        child.max_wait_ns = parent.max_wait_ns
        child.owner = parent.owner
        child.item = k
        child.first_seq = seq
        child.form = parent.form
        child.model = parent.model
        child.window = parent.window
        child.oldest_output = parent.oldest_output
        _set_hash(shard, child)
        if kind == Kind.OPEN_MANY:
            child.alias = parent.alias
            if child.alias != 0:
                child.model = version_now(shard, child)
    previous.sibling = 0
    parent.model = -1
