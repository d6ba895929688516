"""The HTTP address: what is answered, and what hostile clients can do to it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import threading
from http import HTTPStatus

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamrnn.errors import StartError
from streamrnn_server.config import Endpoint, parse_metrics_address
from streamrnn_server.event_log import EventLog
from streamrnn_server.monitor import http
from streamrnn_server.monitor.http import MAX_CONNECTIONS, Answer, HttpServer
from streamrnn_server.testing import serving
from tests.monitor.scraping import get
from tests.support.models import random_model

TIMEOUT_S = 30
ANYWHERE = Endpoint("127.0.0.1", 0)


async def _pong(accepts):
    return Answer(HTTPStatus.OK, f"pong {accepts}".encode())


async def _fault(accepts):
    raise ZeroDivisionError


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


@contextlib.contextmanager
def running():
    """A server with a path that answers, and one that fails."""
    failures = []
    server = HttpServer(ANYWHERE, EventLog(stream=io.StringIO()))
    server.start({"/ping": _pong, "/fault": _fault}, lambda *args: failures.append(args))
    try:
        yield server
    finally:
        server.stop()
    assert failures == []


def connect(server):
    host, port = server.url.removeprefix("http://").rsplit(":", 1)
    return socket.create_connection((host, int(port)), TIMEOUT_S)


def exchange(server, data):
    """Send bytes and nothing more; return all that comes."""
    with connect(server) as one:
        with contextlib.suppress(ConnectionError):
            one.sendall(data)
            one.shutdown(socket.SHUT_WR)
        return everything(one)


def everything(one):
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := one.recv(65536):
            received += part
    return received


def test_a_path_is_answered_and_the_connection_closed(server):
    head, _, body = exchange(server, b"GET /ping?a=b HTTP/1.1\r\nAccept: x/y\r\n\r\n").partition(
        b"\r\n\r\n"
    )
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 8\r\n" in head
    assert b"\r\nConnection: close" in head
    assert body == b"pong x/y"


def test_head_is_an_answer_without_its_body(server):
    reply = exchange(server, b"HEAD /ping HTTP/1.0\r\n\r\n")
    assert b"\r\nContent-Length: 5\r\n" in reply
    assert reply.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /ping HTTP/1.1\r\n\r\n", b"405"),
        (b"DELETE /ping HTTP/1.1\r\n\r\n", b"405"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /ping\r\n\r\n", b"400"),
        (b"GET /ping HTTP/2\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
        (b"GET /fault HTTP/1.1\r\n\r\n", b"500"),
        (b"GET /ping HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", b"431"),
    ],
)
def test_what_cannot_be_answered_is_refused(server, request_, status):
    assert exchange(server, request_).startswith(b"HTTP/1.1 " + status)
    assert get(server.url, "/ping") == (200, "pong ")


def test_a_fault_of_ours_is_told_to_the_log_alone():
    stream = io.StringIO()
    server = HttpServer(ANYWHERE, EventLog(stream=stream))
    server.start({"/fault": _fault}, lambda *args: None)
    assert b"ZeroDivision" not in exchange(server, b"GET /fault HTTP/1.1\r\n\r\n")
    server.stop()
    assert "ZeroDivisionError" in stream.getvalue()


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_no_bytes_end_it(server, data):
    reply = exchange(server, data)
    assert reply == b"" or reply.startswith(b"HTTP/1.1 ")
    assert get(server.url, "/ping") == (200, "pong ")


def test_silent_connections_keep_nobody_out():
    with running() as server, contextlib.ExitStack() as opened:
        silent = [opened.enter_context(connect(server)) for _ in range(4 * MAX_CONNECTIONS)]
        for one in silent[::2]:
            with contextlib.suppress(ConnectionError):
                one.sendall(b"GET /ping HTTP/1.1\r\nX-Slow: ")
        assert get(server.url, "/ping") == (200, "pong ")
        # The oldest made way.
        assert everything(silent[0]) == b""
        assert len(server._connections) <= MAX_CONNECTIONS


def test_who_has_asked_is_answered_whatever_silent_connections_come():
    begun, gate = threading.Event(), threading.Event()

    async def wait(accepts):
        begun.set()
        while not gate.is_set():
            await asyncio.sleep(0.001)
        return Answer(HTTPStatus.OK, b"waited")

    server = HttpServer(ANYWHERE, EventLog(stream=io.StringIO()))
    server.start({"/wait": wait, "/ping": _pong}, lambda *args: None)
    try:
        with connect(server) as one, contextlib.ExitStack() as opened:
            one.sendall(b"GET /wait HTTP/1.1\r\n\r\n")
            assert begun.wait(TIMEOUT_S)
            for _ in range(2 * MAX_CONNECTIONS):
                opened.enter_context(connect(server))
            assert get(server.url, "/ping") == (200, "pong ")  # all those are there now
            gate.set()
            assert everything(one).endswith(b"waited")
    finally:
        gate.set()
        server.stop()


def test_a_slow_connection_is_ended_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(http, "_WITHIN_S", 0.05)
    with running() as server, connect(server) as one:
        one.sendall(b"GET /ping")
        assert everything(one) == b""


def test_a_reader_that_does_not_read_is_ended_too(monkeypatch):
    began = threading.Event()

    async def much(accepts):
        began.set()
        return Answer(HTTPStatus.OK, bytes(2**25))

    monkeypatch.setattr(http, "_WITHIN_S", 0.2)
    server = HttpServer(ANYWHERE, EventLog(stream=io.StringIO()))
    server.start({"/much": much}, lambda *args: None)
    with connect(server) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.sendall(b"GET /much HTTP/1.1\r\n\r\n")
        assert began.wait(TIMEOUT_S)
        while server._connections:
            pass
    server.stop()


def test_stopping_cuts_who_is_connected():
    with running() as server:
        one = connect(server)
        one.sendall(b"GET")
        assert get(server.url, "/ping")[0] == 200
    assert everything(one) == b""
    one.close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", "tcp://127.0.0.1:9464"),
        ("0.0.0.0:1", "tcp://0.0.0.0:1"),
        ("[::1]:80", "tcp://[::1]:80"),
        ("localhost:0", "tcp://localhost:*"),
        ("", "None"),
    ],
)
def test_an_address_is_a_port_of_this_machine_or_says_more(text, address):
    assert str(parse_metrics_address(text, "--metrics")) == address


@pytest.mark.parametrize("text", ["http://x", "x:", ":80", "65536", "a:b", "::1:80", "-1", "1 "])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(StartError, match="--metrics"):
        parse_metrics_address(text, "--metrics")


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "none.invalid"])
def test_a_host_that_cannot_be_found_is_a_start_error(host):
    with pytest.raises(StartError, match=f"cannot bind --metrics {host}:1"):
        HttpServer(Endpoint(host, 1), EventLog(stream=io.StringIO()))


def test_an_address_that_is_taken_is_a_start_error_and_frees_what_was_bound():
    models = {"m": random_model(np.random.default_rng(7), [("gru", 8)], 2)}
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = Endpoint("127.0.0.1", other.getsockname()[1])
        begun = serving(models, metrics=taken)
        with pytest.raises(StartError, match="cannot bind --metrics"):
            begun.__enter__()
