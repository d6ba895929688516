"""The compiled codec against the vectors of the protocol, and against the Python codec.

`tests.shard.hostile_bytes` asks the same between guard pages.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamrnn.kernels.jit import jit
from streamrnn.kernels.virtual_memory import address_of
from streamrnn_client import protocol
from streamrnn_client.protocol import ProtocolError, canonical_id
from streamrnn_server.shard.requests import request as r
from streamrnn_server.shard.requests.request import Form, Kind
from streamrnn_server.shard.wire.decode import decode_request
from streamrnn_server.shard.wire.encode import (
    write_array,
    write_bin,
    write_bin_head,
    write_float_array,
    write_map,
    write_nil,
    write_response,
    write_uint,
)
from streamrnn_server.shard.wire.values import read_numbers, read_stream, read_uint
from tests.support.guarded import Guarded, memory_at
from tests.vectors import make as make_wire_vectors

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
    if kind in (Kind.STEP, Kind.RESET):
        meaning["first_seq"] = field("first_seq")
    if kind == Kind.STEP_MANY:
        position, seqs = field("seqs"), []
        for _ in range(field("num_items") if position else 0):
            seq, position = read_uint(position, end)
            seqs.append(seq)
        meaning["seqs"] = seqs if field("seqs") else None
        meaning["columns"] = field("columns")
    if kind in (Kind.STEP, Kind.STEP_MANY):
        if field("form") == Form.BIN:
            meaning["x"] = ctypes.string_at(field("x"), field("x_count"))
        else:
            values = np.zeros(field("x_count") + 1, np.float64)
            after = read_numbers(field("x"), end, field("x_count"), address_of(values))
            assert after in (end, end - 1)  # a batch's `columns` may follow
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
        meaning |= {"model": call.model, "window": call.window}
    if method in ("step", "reset"):
        meaning["first_seq"] = call.first_seq if method == "step" else call.seq
    if method == "batch":
        meaning |= {"seqs": call.seqs, "columns": call.columns}
    if method in ("step", "batch"):
        meaning["x"] = call.x if isinstance(call.x, bytes) else np.array(call.x, np.float64)
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


@pytest.mark.parametrize(
    "vector", VECTORS["requests"] + VECTORS["invalid_requests"], ids=lambda vector: vector["name"]
)
def test_a_vector_means_what_it_says(vector):
    message = bytes.fromhex(vector["hex"])
    kind, meaning = decode(message)
    assert meaning["msgid"] == (-1 if vector["msgid"] is None else vector["msgid"])
    assert (kind == Kind.FOR_PYTHON) == (
        "code" in vector or vector["method"] in protocol.COLD_METHODS
    )
    if "x_float32" in vector:
        assert meaning["x"].astype("<f4").tobytes().hex() == vector["x_float32"]
    if "x_bin" in vector:
        assert meaning["x"].hex() == vector["x_bin"]
    assert_same(message)


@pytest.mark.parametrize("vector", VECTORS["requests"], ids=lambda vector: vector["name"])
def test_every_truncation_goes_to_python(vector):
    message = bytes.fromhex(vector["hex"])
    for length in range(len(message)):
        assert decode(message[:length])[0] == Kind.FOR_PYTHON
    assert decode(message + b"\0")[0] == Kind.FOR_PYTHON


@given(st.binary(max_size=300))
def test_random_bytes_are_never_taken_for_more_than_they_are(message):
    assert_same(message)


@settings(max_examples=400)
@given(
    st.sampled_from(VECTORS["requests"]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
)
@example(VECTORS["requests"][0], [(0, 0x95)])
def test_a_damaged_request_is_the_same_to_both_codecs(vector, damage):
    message = bytearray.fromhex(vector["hex"])
    for place, byte in damage:
        message[place % len(message)] = byte
    assert_same(bytes(message))


INTEGERS = st.integers(-(2**63), 2**64 - 1)
NUMBERS = st.one_of(
    st.tuples(st.lists(INTEGERS | st.floats(), max_size=40), st.just(False)),
    st.tuples(st.lists(INTEGERS | st.floats(width=32), max_size=40), st.just(True)),
)


@given(NUMBERS)
def test_numbers_of_every_width(numbers):
    values, single = numbers
    packed = msgpack.packb([0, 1, "step", ["a", 0, values]], use_single_float=single)
    kind, meaning = decode(packed)
    assert kind == Kind.STEP
    x = msgpack.unpackb(packed)[3][2]
    np.testing.assert_array_equal(meaning["x"], np.array(x, np.float64))


@jit
def write_example(at, msgid, seq, num_items, y, num_values):
    at = write_array(write_response(at, msgid), 6)
    at = write_uint(at, seq)
    at = write_bin(at, y, 4 * num_values)
    at = write_float_array(at, y, num_values)
    at = write_array(at, num_items)
    for _ in range(num_items):
        at = write_nil(at)
    at = write_map(at, min(num_items, 65_535))
    for k in range(min(num_items, 65_535)):
        at = write_nil(write_uint(at, k))
    return write_bin_head(at, 0)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**63 - 1),
    st.one_of(st.integers(0, 20), st.sampled_from([255, 256, 65_535, 65_536])),
    st.one_of(st.integers(0, 20), st.sampled_from([63, 64, 16_383, 16_384, 20_000])),
)
@example(127, 128, 15, 15)
@example(128, 2**16, 16, 16)
def test_what_is_written_is_what_msgpack_reads(msgid, seq, num_items, num_values):
    values = np.random.default_rng(seq % 2**32).normal(size=num_values).astype(np.float32)
    out = np.zeros(700_000, np.uint8)
    end = write_example(address_of(out), msgid, seq, num_items, address_of(values), num_values)
    message = out[: end - address_of(out)].tobytes()
    indices = range(min(num_items, 65_535))
    whole = [seq, values.tobytes(), values.tolist(), [None] * num_items]
    whole += [dict.fromkeys(indices), b""]
    assert msgpack.unpackb(message, strict_map_key=False) == [1, msgid, None, whole]
    # In the shortest form, too.
    assert message == msgpack.packb(
        [1, msgid, None, whole], use_single_float=True, use_bin_type=True
    )
