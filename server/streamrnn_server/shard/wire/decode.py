"""Decode requests: MessagePack in, records out.

No sockets here, and no text: a message that is not wholly well-formed, or that asks for what
Python does, is `Kind.FOR_PYTHON`, and the Python codec (`streamrnn_client.protocol`) says
what is wrong with it. Both codecs pass the same test vectors.
"""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import (
    load_u8,
    load_u32,
)
from streamrnn.kernels.pointers import field_address
from streamrnn_client.protocol import MAX_BATCH, MAX_MSGID
from streamrnn_server.shard.requests.request import NEVER_NS, Form, Kind, Request
from streamrnn_server.shard.wire.values import (
    ValueKind,
    is_utf8,
    read_array,
    read_head,
    read_stream,
    read_uint,
    skip_numbers,
)

__all__ = ["decode_request"]


def _little(text: bytes) -> int:
    return int.from_bytes(text, "little")


_STEP = _little(b"step")
_OPEN = _little(b"open")
_BATC, _H = _little(b"batc"), ord("h")
_CLOS, _E = _little(b"clos"), ord("e")
_RESE, _T = _little(b"rese"), ord("t")
_NS_PER_MS = 1_000_000
_MAX_WAIT_MS = NEVER_NS // _NS_PER_MS


@jit
def decode_request(data: int, num_bytes: int, request: Request) -> int:
    """Decode a request into its record; return its `Kind`.

    Everything that Python must see is `Kind.FOR_PYTHON`. x, streams, numbers and the model's name
    stay in the message. The msgid is -1 where it could not be read.
    """
    end = data + num_bytes
    request.kind = Kind.FOR_PYTHON
    request.msgid = -1
    kind, length, at = read_head(data, end)
    message_type, at = read_uint(at if kind == ValueKind.ARRAY and length >= 2 else 0, end)
    msgid, at = read_uint(at if message_type == 0 else 0, end)
    if at == 0 or msgid > MAX_MSGID:
        return Kind.FOR_PYTHON
    request.msgid = msgid
    if length != 4:
        return Kind.FOR_PYTHON
    kind, length, at = read_head(at, end)
    if at == 0 or kind != ValueKind.STR:
        return Kind.FOR_PYTHON
    name = load_u32(at) if length >= 4 else 0
    last = load_u8(at + 4) if length == 5 else 0
    at += length
    method = Kind.FOR_PYTHON
    if length == 4 and name == _STEP:
        method = Kind.STEP
        at = _decode_step(at, end, request)
    elif length == 5 and name == _BATC and last == _H:
        method = Kind.STEP_MANY
        at = _decode_batch(at, end, request)
    elif length == 4 and name == _OPEN:
        method = Kind.OPEN
        at = _decode_open(at, end, request)
        if at != 0 and request.streams != 0:
            method = Kind.OPEN_MANY
    elif length == 5 and name == _CLOS and last == _E:
        method = Kind.CLOSE
        at = _decode_stream(read_array(at, end, 1), end, request)
    elif length == 5 and name == _RESE and last == _T:
        method = Kind.RESET
        at = _decode_reset(at, end, request)
    if at != end:
        return Kind.FOR_PYTHON
    request.kind = method
    return method


@jit
def _decode_stream(at: int, end: int, request: Request) -> int:
    num_bytes, at = read_stream(at, end, field_address(request, "stream"))
    request.stream_bytes = num_bytes
    return at


@jit
def _decode_step(at: int, end: int, request: Request) -> int:
    """Read ``[stream, first_seq, x]``, and perhaps: what was received; how long it may wait."""
    num_params, at = _read_params(at, end, 3, 5)
    at = _decode_stream(at, end, request)
    seq, at = read_uint(at, end)
    request.first_seq = seq
    at = _decode_x(at, end, request)
    at = _decode_received(at, end, num_params >= 4, request)
    return _decode_max_wait(at, end, num_params == 5, request)


@jit
def _decode_reset(at: int, end: int, request: Request) -> int:
    """Read ``[stream, seq]``, or with a third parameter: what was received."""
    num_params, at = _read_params(at, end, 2, 3)
    at = _decode_stream(at, end, request)
    seq, at = read_uint(at, end)
    request.first_seq = seq
    return _decode_received(at, end, num_params == 3, request)


@jit
def _decode_received(at: int, end: int, is_there: bool, request: Request) -> int:
    received = 0
    if is_there:
        received, at = read_uint(at, end)
    request.received = received
    return at


@jit
def _decode_max_wait(at: int, end: int, is_there: bool, request: Request) -> int:
    """Read how many milliseconds steps may wait, or nil; nobody waits for the longest times."""
    request.max_wait_ns = NEVER_NS
    if not is_there:
        return at
    kind, value, at = read_head(at, end)
    if kind == ValueKind.UINT:
        request.max_wait_ns = min(value, _MAX_WAIT_MS) * _NS_PER_MS
        return at
    return at if kind == ValueKind.NIL else 0


@jit
def _read_params(at: int, end: int, fewest: int, most: int) -> tuple[int, int]:
    """Read the head of an array of parameters: how many, and where they begin; 0 if it is none."""
    kind, num_params, at = read_head(at, end)
    is_good = kind == ValueKind.ARRAY and fewest <= num_params <= most
    return num_params, at if is_good else 0


@jit
def _decode_x(at: int, end: int, request: Request) -> int:
    kind, length, at = read_head(at, end)
    request.x = at
    request.x_count = length
    if kind == ValueKind.BIN:
        request.form = Form.BIN
        return at + length
    request.form = Form.ARRAY
    return skip_numbers(at, end, length) if kind == ValueKind.ARRAY else 0


@jit
def _decode_streams(at: int, end: int, num_streams: int, request: Request) -> int:
    """Check an array of stream ids; the last one is left in the record."""
    request.streams = at
    request.num_items = num_streams
    if num_streams > MAX_BATCH:
        return 0
    for _ in range(num_streams):
        at = _decode_stream(at, end, request)
    return at


@jit
def _decode_batch(at: int, end: int, request: Request) -> int:
    """Read ``[streams, seqs, x]``, and perhaps more.

    That is whether to answer in columns; what was received; how long it may wait.
    """
    num_params, at = _read_params(at, end, 3, 6)
    kind, num_streams, at = read_head(at, end)
    if kind != ValueKind.ARRAY:
        return 0
    at = _decode_streams(at, end, num_streams, request)
    seqs, at = _decode_numbers(at, end, num_streams)
    request.seqs = seqs
    at = _decode_x(at, end, request)
    request.columns = request.received_at = 0
    if num_params >= 4:
        kind, value, at = read_head(at, end)
        if kind != ValueKind.BOOL:
            return 0
        request.columns = value
    if num_params >= 5:
        received_at, at = _decode_numbers(at, end, num_streams)
        request.received_at = received_at
    return _decode_max_wait(at, end, num_params == 6, request)


@jit
def _decode_numbers(at: int, end: int, num_streams: int) -> tuple[int, int]:
    """Check an array of a number for each stream, or nil; return where they are, or 0."""
    kind, length, at = read_head(at, end)
    if kind == ValueKind.NIL:
        return 0, at
    if kind != ValueKind.ARRAY or length != num_streams:
        return 0, 0
    first = at
    for _ in range(length):
        _number, at = read_uint(at, end)
    return first, at


@jit
def _decode_open(at: int, end: int, request: Request) -> int:
    """Read ``[stream or streams, model or nil, window]``; x is the model's name.

    A fourth parameter that is a bool says whether to tell the oldest output.
    """
    num_params, at = _read_params(at, end, 3, 4)
    kind, length, after = read_head(at, end)
    request.streams = 0
    if kind == ValueKind.ARRAY:
        at = _decode_streams(after, end, length, request)
    else:
        at = _decode_stream(at, end, request)
    kind, length, at = read_head(at, end)
    if kind == ValueKind.STR:
        if not is_utf8(at, length):
            return 0
        request.x = at
        request.x_count = length
        at += length
    else:
        request.x = 0
        request.x_count = 0
        if kind != ValueKind.NIL:
            return 0
    window, at = read_uint(at, end)
    request.window = window
    request.oldest_output = -1
    if num_params == 4:
        kind, value, at = read_head(at, end)
        if kind != ValueKind.BOOL:
            return 0
        request.oldest_output = value - 1
    return at
