"""What waits, in bytes: for clients that do not read, for Python, in messages without an end."""

from __future__ import annotations

import ctypes
import struct
import threading
from typing import Any

import numpy as np
import pytest
import zmq

from streamrnn_client.protocol import encode_request
from streamrnn_server.control import loop as control_loop
from streamrnn_server.testing import serving
from tests.server.budget import budget_of, fixed_bytes
from tests.support.models import random_model
from tests.support.peer import Peer, random_id, until

NUM_INPUTS, WINDOW = 3, 256
MODEL = random_model(np.random.default_rng(11), [("lstm", 8)], NUM_INPUTS, 1024)
MAX_STREAMS = 100
CHUNK = np.zeros((WINDOW, NUM_INPUTS), np.float32).tobytes()
REPLY_BYTES = 4 * WINDOW * 1024


@pytest.fixture(scope="module")
def least():
    with serving({"m": MODEL}, max_streams=MAX_STREAMS) as server:
        return fixed_bytes(server.control.shards[0].struct)


@pytest.fixture
def server(least):
    budget = budget_of(least + 2**26)
    with serving({"m": MODEL}, max_streams=MAX_STREAMS, memory_budget_bytes=budget) as server:
        yield server


@pytest.fixture
def victim(server):
    peer = Peer(server.endpoints[0])
    peer.ok("open", "victim", None, 16)
    yield peer
    peer.socket.close()


class SlowReader:
    """A client that asks and does not read: its own socket takes one reply."""

    def __init__(self, server):
        self.socket: Any = zmq.Context.instance().socket(zmq.DEALER)
        options = {zmq.LINGER: 0, zmq.RCVHWM: 1, zmq.RCVBUF: 4096, zmq.SNDHWM: 0}
        for option, value in {**options, zmq.ROUTING_ID: random_id()}.items():
            self.socket.setsockopt(option, value)
        self.socket.connect(server.endpoints[0])

    def ask(self, method, *params, msgid=7):
        self.socket.send(encode_request(msgid, method, params))


def accounts(server):
    return server.control.shards[0].struct["clients"]


def unread_bytes(server):
    clients = accounts(server)
    return int(clients["sent_bytes"]) - int(clients["left_bytes"])


def asked_bytes(server):
    clients = accounts(server)
    return int(clients["asked_bytes"]) - int(clients["answered_bytes"])


def test_replies_that_are_not_read_stay_within_their_share_and_hinder_nobody(server, victim):
    max_bytes = int(accounts(server)["max_unread_bytes"])
    slow = [SlowReader(server) for _ in range(3)]
    num_asked = 4 * max_bytes // REPLY_BYTES
    for k, reader in enumerate(slow):
        reader.ask("open", f"slow-{k}", None, WINDOW)
        for _ in range(num_asked):  # the same numbers again: answered from memory
            reader.ask("step", f"slow-{k}", 1, CHUNK)
    most = 0
    for _ in range(1000):
        stats = victim.ok("stats")
        most = max(most, unread_bytes(server))
        if stats["num_replies"] + stats["num_dropped_slow_reader"] > 3 * num_asked:
            break
    assert stats["num_dropped_slow_reader"] > num_asked
    assert REPLY_BYTES < most <= max_bytes + REPLY_BYTES
    # Others still have room, and their replies arrive whole.
    _, _, y = victim.ok("step", "victim", 1, CHUNK[: 16 * 4 * NUM_INPUTS])
    assert len(y) == 16 * 4 * 1024
    for reader in slow:
        reader.socket.close()
    until(lambda: victim.ok("hello", {}) and unread_bytes(server) < REPLY_BYTES)


def test_small_replies_that_are_not_read_are_counted_too(server, victim):
    slow = SlowReader(server)
    for _ in range(10_000):  # 0.5 KiB each, more than the kernel keeps
        slow.ask("open", list(range(80)), None, 1)
    counters = server.control.shards[0].struct["counters"]
    until(lambda: victim.ok("close", "nothing") is False and counters["num_replies"] > 9_000)
    # Some have left for the buffers of the kernel and of libzmq's other end.
    assert unread_bytes(server) > 0
    slow.socket.close()
    until(lambda: victim.ok("hello", {}) and unread_bytes(server) < 2**16)


def test_a_message_of_many_values_is_refused_without_python(server, victim):
    num_bytes = 2**21
    for head, values in [
        (b"\x94\x00\x01\xa5stats\xdd" + struct.pack(">I", num_bytes), b"\x90" * num_bytes),
        (b"\x94\x00\x01\xa5stats" + 600 * (b"\xdd" + struct.pack(">I", num_bytes)), b""),
        (b"\x94\x00\x01\xa5hello\x91\xdf" + struct.pack(">I", num_bytes // 2), b"\x01" * num_bytes),
        (
            b"\x94\x00\x01\xa5stats\xdd" + struct.pack(">I", num_bytes // 3),
            b"\xd4\x01\x02" * num_bytes,
        ),
    ]:
        before = int(accounts(server)["asked_bytes"])
        victim.socket.send(head + values)
        _, error, _ = victim.receive()
        assert error[0] == "bad_params"
        assert int(accounts(server)["asked_bytes"]) - before < 4096


@pytest.mark.parametrize("form", ["bin", "array"])
def test_an_x_that_no_stream_takes_is_refused_for_its_length_and_takes_no_memory(least, form):
    budget = budget_of(least + 2**21)  # one page of the arena
    num_values = 2**21
    x = bytes(4 * num_values) if form == "bin" else [1] * num_values
    options = {"max_streams": MAX_STREAMS, "memory_budget_bytes": budget}
    with serving({"m": MODEL}, max_message_bytes=2**24, **options) as server:
        peer = Peer(server.endpoints[0])
        peer.ok("open", ["a", "b"], None, 2)
        assert peer.error("step", "a", 1, x)[0] in ("window", "wrong_length")
        assert peer.error("step", "unknown", 1, x)[0] == "unknown"
        assert peer.error("batch", ["a", "b"], [1, 1], x)[0] == "wrong_length"
        assert server.control.stats()["num_refused_for_room"] == 0
        peer.socket.close()


def test_a_message_of_some_frames_is_refused_and_its_sender_goes_on(server, victim):
    victim.socket.send_multipart([encode_request(99, "hello", [{}]), *[b""] * 99])
    msgid, error, _ = victim.receive()
    assert (msgid, error[0], error[2]["num_frames"]) == (99, "malformed", 100)
    assert victim.ok("hello", {})["protocol"] == 1


def test_a_message_of_many_frames_is_dropped_in_parts_and_its_connection_is_cut(server, victim):
    peer = Peer(server.endpoints[0])
    cuts = peer.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    peer.socket.send_multipart([encode_request(1, "hello", [{}]), *[b""] * 10_000])
    assert cuts.poll(20_000)
    peer.socket.disable_monitor()
    cuts.close()
    peer.socket.close()
    assert victim.ok("hello", {})["protocol"] == 1
    stats = victim.ok("stats")
    assert (stats["num_extra_frames"], stats["num_without_payload"]) == (1, 0)


def test_who_asks_for_much_of_python_leaves_some_for_others(server, victim):
    hostile = Peer(server.endpoints[0])
    codes = set()
    try:
        for _ in range(200):
            for _ in range(500):
                hostile.socket.send(encode_request(1, "models", []))
            while hostile.socket.poll(0):
                _, error, _ = hostile.receive()
                codes.add(error and error[0])
            assert victim.ok("hello", {})["protocol"] == 1  # and not `busy`
            if codes == {None, "busy"}:
                break
    finally:
        hostile.socket.close()
    assert codes == {None, "busy"}


class Gate:
    """Python's part of a server, which waits where it is told to, and keeps the order of work."""

    def __init__(self, server, monkeypatch):
        self.is_open, self.has_come = threading.Event(), threading.Event()
        self.clients: list[bytes] = []
        answer = server.control.answer

        def answer_in_time(shard, ask):
            self.has_come.set()
            self.is_open.wait()
            self.clients.append(ask.identity)
            return answer(shard, ask)

        monkeypatch.setattr(server.control, "answer", answer_in_time)


def test_what_waits_for_python_is_bounded_and_another_client_is_answered_next(
    server, victim, monkeypatch
):
    max_bytes = int(accounts(server)["max_asked_bytes"])
    hostile = SlowReader(server)
    gate = Gate(server, monkeypatch)
    hostile.ask("hello", {})
    gate.has_come.wait()
    record = bytes(2**16)
    num_sent = 2 * max_bytes // len(record)
    for _ in range(num_sent):
        hostile.ask("import", "stolen", record)
    shard = server.control.shards[0].struct
    until(lambda: victim.ok("close", "nothing") is False and shard["counters"]["num_calls_refused"])
    assert len(record) < asked_bytes(server) <= max_bytes
    before = int(accounts(server)["asked_bytes"])
    sent = victim.send("hello", {})
    until(lambda: int(accounts(server)["asked_bytes"]) > before)
    gate.is_open.set()
    assert victim.receive()[0] == sent
    until(lambda: asked_bytes(server) == 0)
    hostile_id = hostile.socket.getsockopt(zmq.ROUTING_ID)
    others = [k for k, identity in enumerate(gate.clients) if identity != hostile_id]
    assert others[0] <= 2
    assert gate.clients.count(hostile_id) > 3
    hostile.socket.close()


def test_a_stop_drops_what_waits_for_python_when_its_time_is_over(least, monkeypatch):
    monkeypatch.setattr(control_loop, "_ANSWER_WITHIN_S", 0.0)
    with serving({"m": MODEL}, max_streams=MAX_STREAMS) as server:
        hostile, peer = SlowReader(server), Peer(server.endpoints[0])
        gate = Gate(server, monkeypatch)
        hostile.ask("hello", {})
        gate.has_come.wait()
        for _ in range(500):
            hostile.ask("models")
        peer.ok("close", "nothing")
        until(lambda: peer.ok("close", "nothing") is False and asked_bytes(server) > 200_000)
        server.stop()
        gate.is_open.set()
    assert len(gate.clients) < 100
    assert asked_bytes(server) == 0
    for each in (hostile, peer):
        each.socket.close()


def test_ids_of_clients_that_have_none_begin_where_nobody_knows(least):
    libc = ctypes.CDLL(None)
    firsts = []
    for _ in range(2):
        libc.srand(1)
        with serving({"m": MODEL}, max_streams=MAX_STREAMS):
            firsts.append(libc.rand())
    libc.srand(1)
    firsts.append(libc.rand())
    assert len(set(firsts)) == 3
