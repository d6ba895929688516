"""The client of gRPC servers: frames, windows, Triton's messages, servers where they are there."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn_bench.peers import measure
from streamrnn_bench.peers.contenders import peers_versions
from streamrnn_bench.peers.http2 import Connection
from streamrnn_bench.peers.measure import measure_served_peers
from streamrnn_bench.peers.triton_messages import ReplyReader, request_head
from streamrnn_bench.report.results import BenchError
from streamrnn_bench.step.cases import Case

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
(DATA, HEADERS, _, RST, SETTINGS, _, PING, GOAWAY, WINDOW) = range(9)
PEERS_PYTHON = Path(os.environ.get("STREAMRNN_PEERS_PYTHON", "build/peers/bin/python"))


def frame(kind, flags, number, payload):
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big")
    return head + payload


def frames(data):
    """Split bytes into frames (kind, flags, call, payload)."""
    found = []
    while data:
        size = int.from_bytes(data[:3], "big")
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        assert len(data) >= 9 + size
        data = data[9 + size :]
    return found


def message(content):
    return struct.pack(">BI", 0, len(content)) + content


def started(num_calls=1):
    connection = Connection("/service/Method", num_calls)
    out = connection.take_out()
    assert out.startswith(PREFACE)
    return connection, frames(out[len(PREFACE) :])


def test_a_connection_begins_with_settings_and_a_request_for_each_call():
    _connection, sent = started(3)
    assert [(kind, number) for kind, _, number, _ in sent] == [
        *((SETTINGS, 0), (WINDOW, 0), (HEADERS, 1), (HEADERS, 3), (HEADERS, 5))
    ]
    headers = sent[2][3]
    for words in (b"\x83\x86", b"/service/Method", b"application/grpc", b"trailers"):
        assert words in headers


@given(
    st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=40)), max_size=12),
    st.lists(st.integers(1, 30), min_size=1, max_size=9),
    st.integers(1, 50),
)
def test_messages_are_found_however_they_are_cut(contents, cuts, frame_size):
    connection, _ = started(3)
    data = b""
    for call, content in contents:
        whole = message(content)
        for at in range(0, len(whole), frame_size):
            data += frame(DATA, 0, 2 * call + 1, whole[at : at + frame_size])
    found = []
    k = 0
    while data:
        size = cuts[k % len(cuts)]
        found += connection.messages(data[:size])
        data, k = data[size:], k + 1
    assert found == [content for _, content in contents]


def test_what_a_window_does_not_allow_waits():
    connection, _ = started()
    connection.send(0, bytes(200_000))
    first = frames(connection.take_out())
    assert sum(len(payload) for *_, payload in first) == 65_535
    assert all(len(payload) <= 16_384 for *_, payload in first)
    assert connection.take_out() == b""
    # The connection's window and the call's: both must be open.
    assert list(connection.messages(frame(WINDOW, 0, 0, struct.pack(">I", 1 << 20)))) == []
    assert connection.take_out() == b""
    list(connection.messages(frame(WINDOW, 0, 1, struct.pack(">I", 100))))
    assert [len(payload) for *_, payload in frames(connection.take_out())] == [100]
    # A larger first window is for calls that are open too.
    list(connection.messages(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535 + 1_000_000))))
    sent = frames(connection.take_out())
    assert sent[0] == (SETTINGS, 1, 0, b"")
    assert sum(len(payload) for *_, payload in sent[1:]) == 200_005 - 65_535 - 100


def test_a_ping_is_answered():
    connection, _ = started()
    list(connection.messages(frame(PING, 0, 0, b"abcdefgh")))
    assert frames(connection.take_out()) == [(PING, 1, 0, b"abcdefgh")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "has closed the connection"),
        (frame(HEADERS, 5, 1, b""), "has ended a call"),
        (frame(RST, 0, 1, bytes(4)), "has broken off a call"),
        (frame(GOAWAY, 0, 0, bytes(8) + b"too many pings"), "too many pings"),
        (frame(DATA, 0, 1, b"\x01\0\0\0\0"), "compresses"),
        (frame(DATA, 0, 9, b"\0\0\0\0\0"), "a call that was not made"),
        (frame(WINDOW, 0, 9, bytes(4)), "a call that was not made"),
        (frame(WINDOW, 0, 0, bytes(3)), "a frame of 3 bytes"),
        (frame(SETTINGS, 0, 0, bytes(7)), "a frame of 7 bytes"),
    ],
)
def test_a_server_that_ends_or_errs_is_told(data, words):
    connection, _ = started()
    with pytest.raises(BenchError, match=words):
        list(connection.messages(data))


def field(number, value):
    return bytes([number << 3 | 2, len(value)]) + value


def triton_reply(y, stream=b"000017", error=b""):
    tensor = field(1, b"y") + field(2, b"FP32") + field(3, b"\x01\x02")
    infer = field(1, b"lstm") + field(2, b"1") + field(3, stream) + field(5, tensor) + field(6, y)
    return (field(1, error) if error else b"") + field(2, infer)


def test_tritons_replies_are_read():
    read = ReplyReader(8)
    assert read(triton_reply(bytes(range(8)))) == (17, bytes(range(8)))
    assert read(triton_reply(bytes(8), b"000003")) == (3, bytes(8))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (triton_reply(bytes(8), error=b"no such sequence"), "Triton: no such sequence"),
        (triton_reply(b""), "laid out in another way"),
        (triton_reply(bytes(12)), "laid out in another way"),
        (triton_reply(bytes(8))[:-3], "cut off"),
        (b"\xff" * 20, "cut off"),
        (b"", "laid out in another way"),
    ],
)
def test_replies_of_tritons_that_are_no_steps_are_told(reply, words):
    with pytest.raises(BenchError, match=words):
        ReplyReader(8)(reply)
    seen_one = ReplyReader(8)
    seen_one(triton_reply(bytes(8)))
    with pytest.raises(BenchError, match=words):
        seen_one(reply)


def test_requests_to_triton_tell_sequence_and_length():
    head = request_head(41, True, 64)
    assert b"\x1a\x06000041" in head
    assert b"\x0a\x0bsequence_id\x12\x02\x10\x2a" in head  # int64_param 42
    assert b"sequence_start\x12\x02\x08\x01" in head  # bool_param
    assert b"sequence_start\x12\x02\x08\x00" in request_head(41, False, 64)
    assert b"\x1a\x02\x01\x40" in head  # shape [1, 64]
    assert head.endswith(b"\x3a\x80\x02")  # raw_input_contents, 256 bytes


@pytest.mark.slow
@pytest.mark.skipif(not PEERS_PYTHON.exists(), reason="no build/peers: `make peers` makes it")
@pytest.mark.parametrize(
    "name",
    [
        "gRPC",
        pytest.param("Triton", marks=pytest.mark.soak),  # half a minute until it is up
        "pyzmq + onnxruntime",
        "pyzmq + pytorch",
    ],
)
def test_the_real_servers_compute_what_the_reference_does(name, monkeypatch):
    monkeypatch.setattr(measure, "_WARM_UP_S", 0.01)
    if name == "Triton" and "nvidia-pytriton" not in peers_versions(PEERS_PYTHON):
        pytest.skip("the peers' Python has no nvidia-pytriton")
    case = Case("lstm", 5, 8)
    results = list(measure_served_peers(case, [name], (1, 6), 1, 0.05, PEERS_PYTHON))
    assert {result.details["streams"] for result in results} == {1, 6}
    for result in results:
        if "nothing" not in result.case:
            assert 0 < result.details["reference_error"] < 1e-6
