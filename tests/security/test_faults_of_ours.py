"""Whatever arrives, and whatever fails in Python: an answer, and no thread that ends in silence."""

from __future__ import annotations

import io
import subprocess
import sys

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamrnn_client.protocol import (
    COLD_METHODS,
    HOT_METHODS,
    ErrorCode,
    encode_error,
    encode_request,
    error_reply,
)
from streamrnn_server.event_log import EventLog
from streamrnn_server.testing import serving
from tests.support.models import random_model
from tests.support.peer import RARELY_S, Peer, step, until
from tests.support.program import ROOT, TIMEOUT_S

NUM_INPUTS = 3
CODES = {code.wire for code in ErrorCode}


@pytest.fixture(scope="module")
def model():
    return random_model(np.random.default_rng(7), [("lstm", 24)], NUM_INPUTS)


@pytest.fixture
def durable(model, tmp_path):
    options = {"state_dir": tmp_path, "durability": "checkpoint"}
    with serving({"m": model}, checkpoint_interval_s=RARELY_S, **options) as server:
        yield server


@pytest.fixture
def peer(durable):
    peer = Peer(durable.endpoints[0])
    yield peer
    peer.socket.close()


# MessagePack that is well-formed, and holds what Python cannot say, or not write again.
ODD_VALUES = st.sampled_from(
    [
        b"\xa1\xff",  # a str that is not UTF-8
        b"\xa3\xed\xa0\x80",  # a surrogate
        b"\xa0",
        b"\xd9\xff" + b"a" * 255,
        b"\xda\xff\xff" + b"\xff" * 65535,
        b"\x91" * 300 + b"\x01",
        b"\x91" * 600 + b"\x01",
        b"\x81\x01" * 400 + b"\x02",
        b"\xd4\x05\x00",  # an extension
        b"\xc7\x0c\xff\x00\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff",  # a time beyond all years
        b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",  # NaN
        b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",  # Inf
        b"\xcf" + b"\xff" * 8,
        b"\xd3\x80" + bytes(7),
        b"\x81\x01\x02",
        b"\x80",
        b"\x90",
        b"\xc0",
        b"\xc3",
        b"\xc4\x00",
        b"\x01",
        b"\xa1a",
    ]
)
METHODS = st.sampled_from([*COLD_METHODS, *HOT_METHODS, "\udcff", "nothing"])


@given(method=METHODS, params=st.lists(ODD_VALUES, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_odd_parameters_are_refused_by_a_code_and_end_nothing(peer, method, params):
    name = method.encode("utf-8", "surrogateescape")
    head = b"\x94\x00\xcd\x12\x34" + bytes([0xA0 + len(name)]) + name + bytes([0x90 + len(params)])
    peer.socket.send(head + b"".join(params))
    msgid, error, _ = peer.receive()
    assert msgid == 0x1234
    assert error is None or error[0] in CODES - {"internal"}
    assert peer.ok("hello")["protocol"] == 1
    assert peer.ok("stats")["num_errors_internal"] == 0


@given(record_or_model=st.lists(ODD_VALUES, min_size=1, max_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_the_model_of_a_good_record_may_be_anything(peer, record_or_model):
    peer.call("open", "e", None, 16)
    record = peer.ok("export", "e")
    for head in (b"\x94\x00\x63\xa6import\x93\xa1f", b"\x94\x00\x63\xa4open\x94\xa1f"):
        parts = [msgpack.packb(record), record_or_model[0]]
        if b"open" in head:
            parts = [record_or_model[0], b"\x10", parts[0]]
        peer.socket.send(head + b"".join(parts))
        assert peer.receive()[0] == 0x63
        peer.ok("close", "f")
    assert peer.ok("stats")["num_errors_internal"] == 0


def nested(depth):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    ["\udcff", nested(2000), 2**64, -(2**63) - 1, object(), {1: "\ud800"}],
    ids=["no UTF-8", "deep", "large", "small", "no such type", "surrogate"],
)
@pytest.mark.parametrize("code", [ErrorCode.UNKNOWN_MODEL, ErrorCode.INTERNAL])
def test_an_error_whose_detail_cannot_be_encoded_goes_without_it(value, code):
    reply = msgpack.unpackb(encode_error(7, [code.wire, "text", {"model": value}]))
    assert reply == [1, 7, error_reply(code), None]


def test_an_error_whose_text_cannot_be_encoded_goes_without_it():
    reply = msgpack.unpackb(encode_error(7, ["unknown", "stream \udcff", {}]))
    assert reply == [1, 7, error_reply(ErrorCode.UNKNOWN), None]


class Fault(Exception):
    """What no code expects."""


def failing(*_args, **_options):
    raise Fault("secret \udcff")


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("_look_ups.answer", ["step", "unknown", 1, bytes(4 * NUM_INPUTS)]),
        ("_call", ["hello"]),
        ("_look_ups.known_about", ["step", "a", 9, bytes(4 * NUM_INPUTS)]),
        ("_state_methods.call", ["export", "a"]),
        ("_state_methods.finish_export", ["export", "a"]),
        ("_state_methods._record_lookup.judge", ["fork", "a", "b"]),
        ("_state_methods._record_lookup.snapshot", ["rollback", "a", 2, None]),
    ],
)
def test_a_fault_in_an_answer_is_answered_internal(durable, peer, monkeypatch, place, call):
    peer.ok("open", "a", None, 8)
    *holders, method = place.split(".")
    holder = durable.control
    for name in holders:
        holder = getattr(holder, name)
    with monkeypatch.context() as patch:
        patch.setattr(holder, method, failing)
        assert peer.error(*call)[0] == "internal"
    assert peer.ok("stats")["num_errors_internal"] == 1
    error, _ = peer.call(*call)
    assert error is None or error[0] != "internal"


def test_a_fault_while_many_are_answered_is_answered_internal(durable, peer, monkeypatch):
    monkeypatch.setattr(durable.control._look_ups, "known_about", failing)
    assert peer.error("batch", ["a", "b"], [1, 1], bytes(8 * NUM_INPUTS))[0] == "internal"


def test_forks_whose_requests_were_lost_do_not_pile_up(durable, peer, monkeypatch):
    monkeypatch.setattr("streamrnn_server.control.methods.state._MAX_WAITING", 3)
    methods = durable.control._state_methods
    fork = methods._methods["fork"]
    monkeypatch.setitem(methods._methods, "fork", lambda *args: fork(*args)[:0])
    for _ in range(10):
        peer.send("fork", "a", "b")
    peer.ok("hello")
    assert len(methods._waiting) == 3


def test_a_fault_in_a_checkpoint_is_tried_again(model, tmp_path, monkeypatch, rng):
    x = rng.standard_normal((1, NUM_INPUTS)).astype(np.float32)
    options = {"state_dir": tmp_path, "durability": "checkpoint", "checkpoint_interval_s": 0.01}
    with serving({"m": model}, **options) as server:
        assert server._disk is not None
        peer = Peer(server.endpoints[0])
        with monkeypatch.context() as patch:
            patch.setattr(server._disk.saver, "_changes", failing)
            peer.ok("open", "a", None, 8)
            step(peer, "a", 1, x[0])
            until(lambda: peer.ok("stats")["read_only"] is not None)
            assert peer.ok("stats")["num_errors_internal"] > 0
            assert peer.ok("open", "a", None, 8)[1] == 0
        until(lambda: peer.ok("open", "a", None, 8)[1] == 1)
        assert peer.ok("stats")["read_only"] is None
        peer.socket.close()


END_A_THREAD = """
import sys
from streamrnn_server.cli import main
from streamrnn_server.{module} import {name}

def failing(*args):
    raise KeyError("of nobody")

{name}.{method} = failing
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "method", "told"),
    [
        ("storage.writer", "CheckpointWriter", "turn", "'saver' has ended (KeyError)"),
        ("server", "Server", "run", "the server has failed"),
    ],
)
def test_a_thread_that_ends_ends_the_server_with_code_1(
    model, tmp_path, module, name, method, told
):
    model.save(tmp_path / "m.safetensors")
    code = END_A_THREAD.format(module=module, name=name, method=method)
    address = ["--bind", "tcp://127.0.0.1:0", "--state-dir", str(tmp_path / "state")]
    command = [sys.executable, "-c", code, "serve", str(tmp_path / "m.safetensors"), *address]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 1
    assert told in ended.stderr
    assert "of nobody" not in ended.stderr


def test_the_log_tells_where_a_fault_was_and_nothing_of_what_came():
    stream = io.StringIO()
    log = EventLog(stream=stream)
    try:
        failing()
    except Fault as error:
        log.write_fault("it failed", error)
    assert "secret" not in stream.getvalue()
    assert "error=Fault" in stream.getvalue()
    assert "test_faults_of_ours.py:" in stream.getvalue()
    assert log.num_faults == 1


def test_a_request_that_python_cannot_word_keeps_its_msgid(peer):
    peer.socket.send(encode_request(9, "nothing", [1])[:-1] + b"\xc1")
    msgid, error, _ = peer.receive()
    assert (msgid, error[0]) == (9, "malformed")
