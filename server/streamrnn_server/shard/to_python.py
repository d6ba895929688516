"""Hand over to Python what compiled code does not answer, over the inproc PAIR.

Compiled code builds no text. A request that ended with an error goes to Python as numbers, with the
identity of whom to answer; Python writes the message and the shard sends it on. How many may go
there is limited, by number and by size.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import copy_bytes
from streamrnn.kernels.pointers import field_address
from streamrnn_client.protocol.messages import ErrorCode
from streamrnn_server.shard import structs as w
from streamrnn_server.shard.libzmq import send_bytes
from streamrnn_server.shard.requests.request import Kind, Request, request_of
from streamrnn_server.shard.structs import AskKind, Shard

__all__ = ["MAX_WORDS", "ask_python", "call_python", "tell_drained", "tell_reply"]

WORDS_PER_S = 2_000
MAX_WORDS = 2_000
_BYTES_PER_WORD = 4096
_MAX_WORDS_PER_CALL = 200
_NS_PER_WORD = 1_000_000_000 // WORDS_PER_S


@jit
def call_python(shard: Shard, request: Request, data: int, num_bytes: int) -> bool:
    """Hand a message over to Python, which answers it.

    Parameters
    ----------
    request : Request
        That says whom to answer.
    data, num_bytes : int
        The payload frame.

    Returns
    -------
    bool
        False if Python has too much to do already.
    """
    num_words = min(1 + num_bytes // _BYTES_PER_WORD, _MAX_WORDS_PER_CALL)
    if not _may_ask(shard, num_words):
        shard.counters.num_calls_refused += 1
        return False
    shard.counters.num_calls += 1
    at = _write_ask(shard, request, AskKind.CALL, num_bytes)
    copy_bytes(at, data, num_bytes)
    return _ask(shard, at + num_bytes)


@jit
def ask_python(shard: Shard, request: Request) -> bool:
    """Let Python word a reply, if it needs words and Python has time, or make a record."""
    if request.kind == Kind.EXPORT and request.code == 0:
        at = _write_ask(shard, request, AskKind.ENTRY, request.y_bytes)
        copy_bytes(at, request.y, request.y_bytes)
        return _ask(shard, at + request.y_bytes)
    num_words = 1 if _needs_words(request) else 0
    if request.code == 0:
        pool = shard.pool
        link = request.first_child
        while link != 0:
            child = request_of(pool, link)
            link = child.sibling
            num_words += 1 if _needs_words(child) else 0
    if num_words == 0:
        return False
    if not _may_ask(shard, min(num_words, _MAX_WORDS_PER_CALL)):
        shard.counters.num_errors_without_words += num_words
        return False
    if request.code != 0:
        num_bytes = request.stream_bytes
        at = _write_ask(shard, request, AskKind.ERROR, num_bytes)
        copy_bytes(at, field_address(request, "stream"), num_bytes)
        return _ask(shard, at + num_bytes)
    return _ask(shard, _write_items(shard, request))


@jit
def _write_items(shard: Shard, parent: Request) -> int:
    """Write what became of each child: a record, its stream id, and its y, one after the other."""
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
        item.id_bytes = child.stream_bytes
        item.y_bytes = child.y_bytes if child.code == 0 and child.kind == Kind.STEP else 0
        at += w.ITEM_BYTES
        copy_bytes(at, field_address(child, "stream"), child.stream_bytes)
        at += child.stream_bytes
        copy_bytes(at, child.y, item.y_bytes)
        at += item.y_bytes
    return at


@jit
def _needs_words(request: Request) -> bool:
    code = request.code
    return code != 0 and code != ErrorCode.BUSY and code != ErrorCode.MOVED


@jit
def _may_ask(shard: Shard, num_words: int) -> bool:
    """Take from the bucket that limits what goes to Python."""
    now = shard.now_ns
    passed = (now - shard.words_ns) // _NS_PER_WORD
    left = shard.words_left
    if passed > 0:
        left = min(left + passed, MAX_WORDS)
        shard.words_ns = now
    if left < num_words:
        shard.words_left = left
        return False
    shard.words_left = left - num_words
    return True


@jit
def _write_ask(shard: Shard, request: Request, what: int, body_bytes: int) -> int:
    """Write the numbers and the identity; return where the body goes."""
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
    identity = shard.out + w.ASK_BYTES
    copy_bytes(identity, field_address(request, "identity"), request.identity_bytes)
    return identity + request.identity_bytes


@jit
def _ask(shard: Shard, end: int) -> bool:
    out = shard.out
    return send_bytes(shard.pair, out, end - out, False) == 0


@jit
def tell_reply(shard: Shard, request: Request, data: int, num_bytes: int) -> None:
    """Give Python the reply to a request that it made itself; the Ask goes behind the reply."""
    head = data + num_bytes
    ask = w.ask_at(head)
    ask.what = AskKind.REPLY
    ask.msgid = request.msgid
    ask.identity_bytes = 0
    if send_bytes(shard.pair, head, w.ASK_BYTES, True) == 0:
        send_bytes(shard.pair, data, num_bytes, False)


@jit
def tell_drained(shard: Shard) -> bool:
    """Tell Python that no more will come; it answers with the end when it has no more either."""
    ask = w.ask_at(shard.out)
    ask.what = AskKind.DRAINED
    ask.identity_bytes = 0
    ask.body_bytes = 0
    return send_bytes(shard.pair, shard.out, w.ASK_BYTES, False) == 0
