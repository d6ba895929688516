"""What the compiled decoder and the Python codec make of a message, in the same words."""

from __future__ import annotations

import ctypes
import json
from typing import Any

import numpy as np

from streamrnn.kernels.jit import jit
from streamrnn.kernels.virtual_memory import address_of
from streamrnn_client import protocol
from streamrnn_client.protocol import ProtocolError, canonical_id
from streamrnn_server.shard.requests import request as r
from streamrnn_server.shard.requests.request import Form, Kind
from streamrnn_server.shard.wire.decode import decode_request
from streamrnn_server.shard.wire.values import read_numbers, read_stream, read_uint
from tests.shard.guarded import Guarded, memory_at
from tests.vectors import make as make_wire_vectors

__all__ = ["VECTORS", "assert_same", "decode"]

VECTORS = json.loads(make_wire_vectors.PATH.read_text(encoding="ascii"))
KINDS = {
    "open": Kind.OPEN,
    "step": Kind.STEP,
    "batch": Kind.STEP_MANY,
    "close": Kind.CLOSE,
    "reset": Kind.RESET,
}
GUARDED = Guarded()
REQUEST = np.zeros(1, r.Request.dtype)
RECORD = address_of(REQUEST)


@jit
def decode_at(data, num_bytes, request):
    return decode_request(data, num_bytes, r.request_at(request))


def decode(message, place=GUARDED.put_last, record=RECORD):
    """Return the kind that compiled code finds, and what the record then says."""

    def field(name):
        return int(request[name])

    at = place(message)
    request = memory_at(record, r.REQUEST_BYTES).view(r.Request.dtype)[0]
    kind = decode_at(at, len(message), record)
    meaning = {"msgid": field("msgid")}
    if kind == Kind.FOR_PYTHON:
        return kind, meaning
    end = at + len(message)
    if kind in (Kind.STEP_MANY, Kind.OPEN_MANY):
        meaning["streams"], position = [], field("streams")
        target = np.zeros(24, np.int64)
        for _ in range(field("num_items")):
            num_bytes, position = read_stream(position, end, address_of(target))
            assert not target.view(np.uint8)[num_bytes:16].any()
            meaning["streams"].append(target.tobytes()[:num_bytes])
    else:
        meaning["stream"] = request["stream"][: field("stream_bytes")].tobytes()
    if kind in (Kind.OPEN, Kind.OPEN_MANY):
        name = ctypes.string_at(field("x"), field("x_count")).decode() if field("x") else None
        meaning |= {"model": name, "window": field("window")}
        meaning["tells_oldest"] = field("oldest_output") == 0
    if kind in (Kind.STEP, Kind.RESET):
        meaning |= {"first_seq": field("first_seq"), "received": field("received")}
    if kind == Kind.STEP_MANY:
        for name, begin in (("seqs", field("seqs")), ("received", field("received_at"))):
            position, numbers = begin, []
            for _ in range(field("num_items") if begin else 0):
                number, position = read_uint(position, end)
                numbers.append(number)
            meaning[name] = numbers if begin else None
        meaning["columns"] = field("columns")
    if kind in (Kind.STEP, Kind.STEP_MANY):
        meaning["max_wait_ns"] = field("max_wait_ns")
    if kind in (Kind.STEP, Kind.STEP_MANY):
        if field("form") == Form.BIN:
            meaning["x"] = ctypes.string_at(field("x"), field("x_count"))
        else:
            values = np.zeros(field("x_count") + 1, np.float64)
            after = read_numbers(field("x"), end, field("x_count"), address_of(values))
            assert 0 < after <= end  # `columns` and `received` may follow
            meaning["x"] = values[:-1]
    return kind, meaning


def expected_of(message):
    """Return what the Python codec makes of a message, in the same words."""
    try:
        request = protocol.decode_request(message)
    except ProtocolError as error:
        return Kind.FOR_PYTHON, {"msgid": -1 if error.msgid is None else error.msgid}
    call: Any = request.call
    msgid, method = request.msgid, request.method
    if method not in KINDS or isinstance(call, protocol.OpenWithStateRequest):
        return Kind.FOR_PYTHON, {"msgid": msgid}
    meaning: dict[str, Any] = {"msgid": msgid}
    kind = Kind.OPEN_MANY if method == "open" and call.many else KINDS[method]
    if kind in (Kind.STEP_MANY, Kind.OPEN_MANY):
        meaning["streams"] = [canonical_id(stream) for stream in call.streams]
    else:
        stream = call.streams[0] if method == "open" else call.stream
        meaning["stream"] = canonical_id(stream)
    if method == "open":
        meaning |= {"model": call.model, "window": call.window, "tells_oldest": call.tells_oldest}
    if method in ("step", "reset"):
        meaning["received"] = call.received
        meaning["first_seq"] = call.first_seq if method == "step" else call.seq
    if method == "batch":
        meaning |= {"seqs": call.seqs, "columns": call.columns, "received": call.received}
    if method in ("step", "batch"):
        meaning["x"] = call.x if isinstance(call.x, bytes) else np.array(call.x, np.float64)
        waits_ms, most_ms = call.max_wait_ms, r.NEVER_NS // 10**6
        meaning["max_wait_ns"] = r.NEVER_NS if waits_ms is None else min(waits_ms, most_ms) * 10**6
    return kind, meaning


def assert_same(message, *places):
    kind, meaning = decode(message, *places)
    expected_kind, expected = expected_of(message)
    assert kind == expected_kind
    if kind == Kind.FOR_PYTHON:  # Python looks again; a length that cannot be may hide the msgid
        assert meaning["msgid"] in (expected["msgid"], -1)
        return
    x, expected_x = meaning.pop("x", None), expected.pop("x", None)
    assert meaning == expected
    assert type(x) is type(expected_x)
    np.testing.assert_array_equal(x, expected_x)
