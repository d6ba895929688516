"""The record of a stream: round trips, and refusal of damage."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn.errors import RecordError
from streamrnn.state.record import (
    FRESH,
    NUMBERED,
    UNNUMBERED,
    StreamRecord,
    decode_record,
    encode_record,
)
from tests.support.records import EXAMPLE


@st.composite
def records(draw):
    numbering = draw(st.sampled_from([FRESH, NUMBERED, UNNUMBERED]))
    window = 1 << draw(st.integers(0, 4))
    last_seq = draw(st.integers(0, 2**62)) if numbering == NUMBERED else 0
    num_ring = min(window, last_seq)
    y_bytes = 4 * draw(st.integers(1, 3)) if window > 1 and num_ring else 0
    num_outputs = draw(st.integers(0, num_ring)) if y_bytes else 0
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    text = draw(st.text(min_size=1, max_size=30))
    number = draw(st.integers(0, 2**64 - 1))
    stream = draw(st.sampled_from([b"s" + text.encode(), b"u" + number.to_bytes(8, "big")]))
    return StreamRecord(
        stream=stream,
        model=draw(st.text(max_size=20)),
        fingerprint=rng.bytes(32).hex(),
        arithmetic="float32-cpu",
        owner=draw(st.text(max_size=5)),
        numbering=numbering,
        window=window,
        last_seq=last_seq,
        clock_s=draw(st.integers(0, 2**40)),
        row=rng.bytes(64 * draw(st.integers(1, 3))),
        digests=rng.integers(-(2**63), 2**63 - 1, num_ring),
        outputs=rng.integers(0, 256, (num_outputs, y_bytes), np.uint8),
        incarnation=draw(st.integers(0, 2**63 - 1)),
        num_changes=draw(st.integers(0, 2**63 - 1)),
        inputs=rng.bytes(4 * draw(st.integers(0, 9))),
    )


def same(a: StreamRecord, b: StreamRecord) -> bool:
    return all(
        np.array_equal(getattr(a, field.name), getattr(b, field.name))
        for field in dataclasses.fields(a)
    )


@given(records())
def test_what_was_written_is_read(record):
    assert same(decode_record(encode_record(record)), record)


def test_every_flipped_bit_is_refused():
    data = encode_record(EXAMPLE)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordError):
            decode_record(changed)


def test_every_truncation_and_anything_behind_is_refused():
    data = encode_record(EXAMPLE)
    for length in range(len(data)):
        with pytest.raises(RecordError):
            decode_record(data[:length])
    with pytest.raises(RecordError, match="says that it has"):
        decode_record(data + b"\0")


def test_a_torn_write_is_refused():
    data = encode_record(EXAMPLE)
    for at in range(16, len(data) - 4, 16):
        with pytest.raises(RecordError, match="checksum"):
            decode_record(data[:at] + bytes(len(data) - at))


@given(st.binary(max_size=400))
def test_other_formats_are_refused(data):
    with pytest.raises(RecordError):
        decode_record(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"numbering": 3}, "numbering 3"),
        ({"window": 512}, "window"),
        ({"last_seq": 4}, "keeps 3 steps of 4"),
        ({"last_seq": -1}, "last step -1"),
        ({"numbering": UNNUMBERED}, "keeps"),
        ({"row": bytes(60)}, "row of 60"),
        ({"stream": b"s"}, "canonical"),
        ({"stream": b"s\xff"}, "canonical"),
        ({"stream": b"u1234567"}, "canonical"),
        ({"clock_s": -1}, "clock"),
        ({"incarnation": -1}, "incarnation -1"),
        ({"num_changes": -1}, "-1 changes"),
        ({"inputs": bytes(6)}, "6 bytes of inputs"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(change, words):
    with pytest.raises(RecordError, match=words):
        decode_record(encode_record(dataclasses.replace(EXAMPLE, **change)))


def test_other_versions_and_other_files_are_named():
    data = encode_record(EXAMPLE)
    with pytest.raises(RecordError, match="version 4; up to 3"):
        decode_record(with_checksum(data[:4] + b"\4" + data[5:]))
    with pytest.raises(RecordError, match="no stream record"):
        decode_record(with_checksum(b"NNRS" + data[4:]))


def test_lengths_that_do_not_add_up_are_refused():
    data = bytearray(encode_record(EXAMPLE))
    data[64] += 64
    with pytest.raises(RecordError, match="parts"):
        decode_record(with_checksum(bytes(data)))


@pytest.mark.parametrize(("num_outputs", "match"), [(2, "its parts"), (4, "4 outputs of 3 steps")])
def test_a_number_of_outputs_that_are_not_there_is_refused(num_outputs, match):
    data = bytearray(encode_record(EXAMPLE))
    assert data[96] == 3
    data[96] = num_outputs
    with pytest.raises(RecordError, match=match):
        decode_record(with_checksum(bytes(data)))


@pytest.mark.parametrize(
    ("version", "num_bytes", "match"),
    [(2, 4, "4 bytes of inputs in version 2"), (3, 0, "0 bytes of inputs"), (3, 4, "its parts")],
)
def test_inputs_are_in_the_version_that_has_them(version, num_bytes, match):
    data = bytearray(encode_record(EXAMPLE))
    assert (data[4], data[100]) == (2, 0)
    data[4], data[100] = version, num_bytes
    with pytest.raises(RecordError, match=match):
        decode_record(with_checksum(bytes(data)))


def with_checksum(data: bytes) -> bytes:
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")
