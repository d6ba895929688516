"""The generator's side of the wire: it writes requests and reads replies, and knows no socket.

All that a reply says is checked against what was asked; every length against the message's end.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    copy_bytes,
    load_i32,
    load_i64,
    load_u8,
    store_i32,
    store_i64,
    store_u8,
)
from streamrnn_bench.load.senders import (
    CODE_BYTES,
    FIRST_MSGID,
    ID_BYTES,
    MODEL_BYTES,
    NUM_ERRORS,
    NUM_X,
    OTHER_ERROR,
    PREFIX_BYTES,
    SCRATCH_BYTES,
    SENDER_BYTES,
    Load,
    Sender,
    ServedModel,
    sender_at,
    served_at,
)
from streamrnn_server.shard.memory.index import hash64
from streamrnn_server.shard.wire.encode import (
    reverse_bytes,
    write_array,
    write_bin_head,
    write_uint,
)
from streamrnn_server.shard.wire.values import ValueKind, read_array, read_head, read_uint

__all__ = [
    "choose_names",
    "count_error",
    "hash_of",
    "model_of",
    "name_of",
    "out_of",
    "read_error",
    "read_opened",
    "read_reply",
    "read_steps",
    "sender_of",
    "write_close",
    "write_open",
    "write_steps",
]

_STEP, _BATCH, _OPEN, _CLOSE = b"\xa4step", b"\xa5batch", b"\xa4open", b"\xa5close"
_TRUE = 0xC3
_ZERO = ord("0")
_KIND_OF_STR = ord("s")  # what a canonical id begins with


@jit
def model_of(load: Load, k: int) -> ServedModel:
    """Return the model that a sender's streams have."""
    return served_at(load.models + k % load.num_models * MODEL_BYTES)


@jit
def sender_of(load: Load, k: int) -> Sender:
    """Return a sender by its number."""
    return sender_at(load.senders + k * SENDER_BYTES)


@jit
def name_of(load: Load, k: int, stream: int) -> int:
    """Return the number in the id of one of a sender's streams; -1 if there is none."""
    return load_i32(load.names + 4 * (k * load.plan.batch + stream))


@jit
def out_of(load: Load) -> int:
    """Return the address at which messages are written."""
    return load.scratch + SCRATCH_BYTES


@jit
def _write_head(load: Load, msgid: int, method: bytes, num_params: int) -> int:
    at = out_of(load)
    store_u8(at, 0x94)
    store_u8(at + 1, 0)
    store_u8(at + 2, 0xCE)
    store_i32(at + 3, reverse_bytes(msgid) >> 32)
    at += 7
    for k in range(len(method)):
        store_u8(at + k, method[k])
    return write_array(at + len(method), num_params)


@jit
def _write_id(load: Load, at: int, name: int) -> int:
    """Write a stream's id: the prefix and its number in digits."""
    store_u8(at, 0xA0 | ID_BYTES)
    copy_bytes(at + 1, load.prefix, PREFIX_BYTES)
    for k in range(ID_BYTES, PREFIX_BYTES, -1):
        store_u8(at + k, _ZERO + name % 10)
        name //= 10
    return at + 1 + ID_BYTES


@jit
def _write_ids(load: Load, at: int, k: int) -> int:
    at = write_array(at, load.plan.batch)
    for stream in range(load.plan.batch):
        at = _write_id(load, at, name_of(load, k, stream))
    return at


@jit
def choose_names(load: Load, k: int) -> None:
    """Give a sender's streams ids that nobody had."""
    for stream in range(load.plan.batch):
        store_i32(load.names + 4 * (k * load.plan.batch + stream), load.counts.next_name)
        load.counts.next_name += 1


@jit
def hash_of(load: Load, k: int) -> int:
    """Return the hash of a sender's first stream, where messages are written."""
    out = out_of(load)
    _write_id(load, out, name_of(load, k, 0))
    store_u8(out, _KIND_OF_STR)
    return hash64(out, 1 + ID_BYTES)


@jit
def write_open(load: Load, k: int, msgid: int) -> int:
    """Write the `open` of a sender's streams; return where it ends."""
    model = model_of(load, k)
    at = _write_ids(load, _write_head(load, msgid, _OPEN, 3), k)
    copy_bytes(at, model.word, model.word_bytes)
    return write_uint(at + model.word_bytes, load.plan.window)


@jit
def write_close(load: Load, name: int, msgid: int) -> int:
    """Write the `close` of one stream; return where it ends."""
    return _write_id(load, _write_head(load, msgid, _CLOSE, 1), name)


@jit
def write_steps(load: Load, k: int, msgid: int, first_seq: int) -> int:
    """Write a `step`, or the `batch` of a sender's streams; return where it ends."""
    plan, model = load.plan, model_of(load, k)
    is_batch = plan.batch > 1
    if is_batch:
        at = _write_head(load, msgid, _BATCH, 4 + plan.tells_received)
        at = _write_same(_write_ids(load, at, k), plan.batch, first_seq)
    else:
        at = _write_head(load, msgid, _STEP, 3 + plan.tells_received)
        at = write_uint(_write_id(load, at, name_of(load, k, 0)), first_seq)
    num_bytes = plan.chunk * model.x_bytes
    at = write_bin_head(at, plan.batch * num_bytes)
    for stream in range(plan.batch):
        row = (k * plan.batch + stream + 7 * first_seq) & (NUM_X - 1)
        copy_bytes(at, model.x + row * model.x_bytes, num_bytes)
        at += num_bytes
    if is_batch:
        store_u8(at, _TRUE)
        at += 1
    if plan.tells_received:
        received = sender_of(load, k).acked
        at = _write_same(at, plan.batch, received) if is_batch else write_uint(at, received)
    return at


@jit
def _write_same(at: int, length: int, value: int) -> int:
    at = write_array(at, length)
    for _ in range(length):
        at = write_uint(at, value)
    return at


@jit
def read_reply(data: int, end: int) -> tuple[int, bool, int]:
    """Read a reply's msgid, whether it is an error, and where error or result begins; 0: none."""
    kind, at = read_uint(read_array(data, end, 4), end)
    msgid, at = read_uint(at, end)
    error, _length, behind = read_head(at, end)
    if at == 0 or kind != 1 or msgid < FIRST_MSGID:
        return -1, False, 0
    if error == ValueKind.NIL:
        return msgid, False, behind
    return msgid, True, at


@jit
def read_error(load: Load, at: int, end: int) -> tuple[int, int]:
    """Read `[code, message, detail]`: the code's number, and the position behind."""
    kind, num_bytes, at = read_head(read_array(at, end, 3), end)
    if kind != ValueKind.STR:
        return OTHER_ERROR, 0
    found = OTHER_ERROR
    for code in range(1, NUM_ERRORS):
        word, k = load.code_words + code * CODE_BYTES, 0
        if num_bytes >= CODE_BYTES or load_u8(word + num_bytes) != 0:
            continue
        while k < num_bytes and load_u8(at + k) == load_u8(word + k):
            k += 1
        if k == num_bytes:
            found = code
            break
    return found, _skip(at + num_bytes, end, 2)


@jit
def count_error(load: Load, code: int) -> None:
    """Count a refusal."""
    at = load.errors + 8 * code
    store_i64(at, load_i64(at) + 1)


@jit
def _skip(at: int, end: int, num_values: int) -> int:
    """Return the position behind some values, whatever they hold; 0 if they do not end."""
    while num_values > 0 and at != 0:
        kind, length, at = read_head(at, end)
        num_values -= 1
        if at == 0:
            return 0
        if kind == ValueKind.ARRAY:
            num_values += length
        elif kind == ValueKind.MAP:
            num_values += 2 * length
        elif kind in (ValueKind.STR, ValueKind.BIN):
            at += length
        elif kind == ValueKind.EXT:
            at += 1 + length
        if at > end or num_values > end - at:
            return 0
    return at


@jit
def read_opened(load: Load, at: int, end: int) -> tuple[int, int]:
    """Read the result of an `open`; return the first item's code, -1 if all are open and new.

    The second is where it ends, 0 if it is none. A stream that has steps already is somebody
    else's: its code is -2.
    """
    at = read_array(at, end, load.plan.batch)
    code = -1
    for _ in range(load.plan.batch):
        at = read_array(at, end, 2)
        kind, _length, behind = read_head(at, end)
        if kind != ValueKind.NIL:
            found, at = read_error(load, at, end)
            if at != 0:
                count_error(load, found)
            code = found if code < 0 else code
            at = _skip(at, end, 1)
            continue
        last_seq, at = read_uint(read_array(behind, end, 3), end)
        _durable_seq, at = read_uint(at, end)
        window, at = read_uint(at, end)
        if at == 0:
            return code, 0
        load.counts.least_window = min(load.counts.least_window, window)
        if last_seq != 0 and code == -1:
            code = -2
    return code, at


@jit
def read_steps(load: Load, k: int, last_seq: int, at: int, end: int) -> tuple[int, int]:
    """Read the result of a step or batch that must carry a number; return its outputs' address.

    That is 0 if the result is wrong, and -1 if items of a batch were refused; the second is then
    the first one's code.
    """
    plan, y_bytes = load.plan, model_of(load, k).y_bytes
    if plan.batch > 1:
        return _read_columns(load, last_seq, plan.batch * y_bytes, at, end)
    found_seq, at = read_uint(read_array(at, end, 3), end)
    _durable_seq, at = read_uint(at, end)
    form, num_bytes, at = read_head(at, end)
    is_right = (
        at != 0
        and (found_seq == last_seq or plan.is_echo)
        and form == ValueKind.BIN
        and num_bytes == plan.chunk * y_bytes
        and at + num_bytes == end
    )
    return at if is_right else 0, 0


@jit
def _read_columns(
    load: Load, last_seq: int, num_y_bytes: int, at: int, end: int
) -> tuple[int, int]:
    kind, num_errors, at = read_head(read_array(at, end, 4), end)
    if kind != ValueKind.MAP:
        return 0, 0
    first_code = -1
    for _ in range(num_errors):
        _item, at = read_uint(at, end)
        code, at = read_error(load, at, end)
        if at == 0:
            return 0, 0
        count_error(load, code)
        first_code = code if first_code < 0 else first_code
    seqs = at
    for _ in range(2):
        kind, num_bytes, at = read_head(at, end)
        if kind != ValueKind.BIN or num_bytes != 8 * load.plan.batch:
            return 0, 0
        at += num_bytes
    if first_code >= 0:
        return -1, first_code
    _kind, _num_bytes, seqs = read_head(seqs, end)
    for stream in range(load.plan.batch):
        if load_i64(seqs + 8 * stream) != last_seq:
            return 0, 0
    kind, num_bytes, at = read_head(at, end)
    is_right = kind == ValueKind.BIN and num_bytes == num_y_bytes and at + num_bytes == end
    return at if is_right else 0, 0
