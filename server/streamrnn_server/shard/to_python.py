"""Pass to Python, over the inproc PAIR, what compiled code does not answer itself.

Compiled code builds no text. A request that ended with an error goes to Python as numbers, with the
identity of its sender; Python writes the message and the shard sends it. A token bucket limits how
many go there, counted by number and by size; what waits there is charged to its client.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes
from streamrnn.kernels.pointers import field_address
from streamrnn_client.protocol import ErrorCode
from streamrnn_server.shard import structs as w
from streamrnn_server.shard.libzmq import send_bytes
from streamrnn_server.shard.memory.clients import (
    AskBucket,
    ask_bucket_at,
    asks_of,
    charge_ask,
    may_ask,
)
from streamrnn_server.shard.requests.finish import set_error
from streamrnn_server.shard.requests.request import Kind, Request, request_of
from streamrnn_server.shard.streams.owners import MAX_ASKS, MAX_ASKS_PER_CALL, NS_PER_ASK
from streamrnn_server.shard.structs import AskKind, Shard, users_at

__all__ = ["ask_python", "call_python", "tell_done", "tell_drained", "tell_left", "tell_reply"]

_BYTES_PER_ASK = 4096
_ASKS_OF_NEW = 20
_BUCKET_BYTES = AskBucket.dtype.itemsize


@jit
def call_python(shard: Shard, request: Request, data: int, num_bytes: int) -> bool:
    """Pass a message to Python, which answers it; False if too many are there already."""
    num_asks = min(1 + num_bytes // _BYTES_PER_ASK, MAX_ASKS_PER_CALL)
    has_room = may_ask(shard.clients, request.client, num_bytes)
    if not has_room or not _take_tokens(shard, request, num_asks):
        shard.counters.num_calls_refused += 1
        return False
    shard.counters.num_calls += 1
    at = _write_ask(shard, request, AskKind.CALL, num_bytes)
    copy_bytes(at, data, num_bytes)
    return _ask(shard, at + num_bytes)


@jit
def ask_python(shard: Shard, request: Request) -> bool:
    """Let Python make the reply if it needs text or a record; False if it does not."""
    if request.kind == Kind.EXPORT and request.code == 0:
        if not may_ask(shard.clients, request.client, request.y_bytes):
            shard.counters.num_calls_refused += 1
            set_error(request, ErrorCode.BUSY)
            return False
        at = _write_ask(shard, request, AskKind.ENTRY, request.y_bytes)
        copy_bytes(at, request.y, request.y_bytes)
        return _ask(shard, at + request.y_bytes)
    num_asks = 1 if _needs_text(request) else 0
    num_bytes = 0
    if request.code == 0:
        pool = shard.pool
        link = request.first_child
        while link != 0:
            child = request_of(pool, link)
            link = child.sibling
            num_asks += 1 if _needs_text(child) else 0
            num_bytes += w.ITEM_BYTES + child.stream_bytes + _y_bytes_of_item(child)
    if num_asks == 0:
        return False
    num_tokens = min(num_asks, MAX_ASKS_PER_CALL)
    has_room = may_ask(shard.clients, request.client, num_bytes)
    if not has_room or not _take_tokens(shard, request, num_tokens):
        shard.counters.num_errors_without_words += num_asks
        return False
    if request.code != 0:
        num_bytes = request.stream_bytes
        at = _write_ask(shard, request, AskKind.ERROR, num_bytes)
        copy_bytes(at, field_address(request, "stream"), num_bytes)
        return _ask(shard, at + num_bytes)
    return _ask(shard, _write_items(shard, request))


@jit
def _write_items(shard: Shard, parent: Request) -> int:
    """Write each child's result: an `Item`, its stream id, and its y, one after the other."""
    pool = shard.pool
    at = _write_ask(shard, parent, AskKind.ITEMS, 0)
    link = parent.first_child
    while link != 0:
        child = request_of(pool, link)
        link = child.sibling
        item = w.item_at(at)
        item.code = child.code
        for k in range(4):
            item.detail[k] = child.detail[k]
        item.last_seq = child.last_seq
        item.durable_seq = child.last_seq if shard.is_always else child.durable_seq
        item.window = child.window
        item.oldest_output = child.oldest_output
        item.id_bytes = child.stream_bytes
        item.y_bytes = _y_bytes_of_item(child)
        at += w.ITEM_BYTES
        copy_bytes(at, field_address(child, "stream"), child.stream_bytes)
        at += child.stream_bytes
        copy_bytes(at, child.y, item.y_bytes)
        at += item.y_bytes
    return at


@jit
def _y_bytes_of_item(child: Request) -> int:
    return child.y_bytes if child.code == 0 and child.kind == Kind.STEP else 0


@jit
def _needs_text(request: Request) -> bool:
    code = request.code
    if code == ErrorCode.MOVED:
        return request.detail[0] < 0  # to another server
    return code != 0 and code not in (ErrorCode.BUSY, ErrorCode.LATE)


@jit
def _take_tokens(shard: Shard, request: Request, num_asks: int) -> bool:
    """Take from the token buckets that limit what goes to Python: of a user, or client, and of all.

    Who has asked for little of late gets it even if others have emptied the common one.
    """
    now, asks = shard.now_ns, shard.asks
    if shard.users == 0:
        own, ns_per_ask, most = asks_of(shard.clients, request.client), NS_PER_ASK, MAX_ASKS
        if own.filled_ns == 0:  # whoever comes anew may ask for some, but not for much by that
            own.left, own.filled_ns = most // 2 + _ASKS_OF_NEW, now
    else:
        users = users_at(shard.users)
        own = ask_bucket_at(users.asks + request.owner * _BUCKET_BYTES)
        ns_per_ask, most = users.ns_per_ask, users.max_asks
    _fill(own, now, ns_per_ask, most)
    _fill(asks, now, NS_PER_ASK, MAX_ASKS)
    is_modest = own.left > most // 2
    if own.left < num_asks or (asks.left < num_asks and not is_modest):
        return False
    own.left -= num_asks
    asks.left = max(0, asks.left - num_asks)
    return True


@jit
def _fill(bucket: AskBucket, now: int, ns_per_ask: int, most: int) -> None:
    passed = (now - bucket.filled_ns) // ns_per_ask
    if passed > 0:
        bucket.left = min(bucket.left + passed, most)
        bucket.filled_ns = now


@jit
def _write_ask(shard: Shard, request: Request, what: int, body_bytes: int) -> int:
    """Write the numbers and the identity at ``shard.out``; return where the body goes."""
    ask = w.ask_at(shard.out)
    ask.what = what
    ask.msgid = request.msgid
    ask.code = request.code
    for k in range(4):
        ask.detail[k] = request.detail[k]
    ask.model = request.model
    ask.kind = request.kind
    ask.form = request.form
    ask.num_items = request.num_items
    ask.identity_bytes = request.identity_bytes
    ask.body_bytes = body_bytes
    ask.owner = request.owner
    ask.columns = request.columns if request.kind == Kind.STEP_MANY else 0
    identity = shard.out + w.ASK_BYTES
    copy_bytes(identity, field_address(request, "identity"), request.identity_bytes)
    ask.client = request.client
    return identity + request.identity_bytes


@jit
def _ask(shard: Shard, end: int) -> bool:
    out = shard.out
    ask = w.ask_at(out)
    ask.charge = charge_ask(shard.clients, ask.client, end - out)
    return send_bytes(shard.pair, out, end - out, False) == 0


@jit
def tell_reply(shard: Shard, request: Request, data: int, num_bytes: int) -> None:
    """Pass Python the reply to a request of its own; the Ask is written behind the reply."""
    head = data + num_bytes
    ask = w.ask_at(head)
    ask.what = AskKind.REPLY
    ask.msgid = request.msgid
    ask.owner = request.owner
    ask.identity_bytes = ask.charge = 0
    if send_bytes(shard.pair, head, w.ASK_BYTES, True) == 0:
        send_bytes(shard.pair, data, num_bytes, False)


@jit
def tell_done(shard: Shard, token: int, is_done: int) -> None:
    """Tell Python what became of a command of its own."""
    ask = w.ask_at(shard.out)
    ask.what = AskKind.DONE
    ask.msgid, ask.code = token, is_done
    ask.identity_bytes = ask.body_bytes = ask.charge = ask.owner = ask.client = 0
    send_bytes(shard.pair, shard.out, w.ASK_BYTES, False)


@jit
def tell_left(shard: Shard, request: Request) -> None:
    """Tell Python that a stream is on disk as it is, before anything else is asked about it."""
    num_bytes = request.stream_bytes
    ask = w.ask_at(shard.out)
    ask.what = AskKind.LEFT
    ask.msgid = request.msgid
    ask.identity_bytes = ask.charge = 0
    ask.body_bytes = num_bytes
    copy_bytes(shard.out + w.ASK_BYTES, field_address(request, "stream"), num_bytes)
    send_bytes(shard.pair, shard.out, w.ASK_BYTES + num_bytes, False)


@jit
def tell_drained(shard: Shard) -> bool:
    """Tell Python that no more will come; Python sends `CommandKind.END` in turn."""
    ask = w.ask_at(shard.out)
    ask.what = AskKind.DRAINED
    ask.identity_bytes = ask.charge = 0
    ask.body_bytes = 0
    return send_bytes(shard.pair, shard.out, w.ASK_BYTES, False) == 0
