"""The compiled codec against the vectors of the protocol, and against the Python codec.

`tests.shard.hostile_bytes` asks the same between guard pages.
"""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamrnn.kernels.jit import jit
from streamrnn.kernels.virtual_memory import address_of
from streamrnn_client import protocol
from streamrnn_server.shard.requests.request import Kind
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
from tests.vectors.codec import VECTORS, assert_same, decode


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
@example(([13_787_848_793_156_543_489, 2**63, 2**64 - 1, 2**63 + 1025], False))
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
