"""Health: who does not move is named, an idle shard is alive, and readiness follows the disk."""

from __future__ import annotations

import contextlib
import threading

import numpy as np
import pytest

from streamrnn_server import server as server_module
from streamrnn_server.config import Endpoint
from streamrnn_server.connections.connections import Connections
from streamrnn_server.monitor import health
from streamrnn_server.shard.loop import serve
from streamrnn_server.testing import serving
from streamrnn_server.worker import Worker
from tests.monitor.scraping import get
from tests.support.models import random_model
from tests.support.peer import Peer, until

ANYWHERE = Endpoint("127.0.0.1", 0)
OK_ALIVE, OK_READY = (200, "alive\n"), (200, "ready\n")


@pytest.fixture(scope="module")
def models():
    return {"m": random_model(np.random.default_rng(7), [("gru", 8)], 2)}


@pytest.fixture
def impatience(monkeypatch):
    monkeypatch.setattr(health, "_WITHIN_S", 0.05)


@pytest.fixture
def gate():
    """What threads of the server are to wait for."""
    return threading.Event()


@contextlib.contextmanager
def opening(gate):
    """Open it before the server ends, which waits for its threads, also after a failure."""
    try:
        yield
    finally:
        gate.set()


def test_idle_shards_are_woken_and_alive(models):
    with serving(models, num_shards=2, metrics=ANYWHERE) as server:
        for k in range(3):
            before = [int(each.struct["heartbeat"]) for each in server.control.shards]
            assert before == [k, k]
            assert get(server.metrics_url, "/healthz") == OK_ALIVE
        assert get(server.metrics_url, "/readyz") == OK_READY


def test_a_shard_that_hangs_is_named_until_it_moves(models, impatience, monkeypatch, gate):
    def hanging(address):
        gate.wait()
        serve(address)

    monkeypatch.setattr(server_module, "serve", hanging)
    with serving(models, metrics=ANYWHERE) as server, opening(gate):
        assert get(server.metrics_url, "/healthz") == (503, "stuck: shard-0\n")
        assert get(server.metrics_url, "/metrics")[0] == 200
        gate.set()
        until(lambda: get(server.metrics_url, "/healthz") == OK_ALIVE)


def test_a_control_thread_that_hangs_is_named(models, impatience, monkeypatch, gate):
    with serving(models, metrics=ANYWHERE) as server, opening(gate):
        began, answer = threading.Event(), server.control.answer

        def hanging(*args):
            began.set()
            gate.wait()
            return answer(*args)

        monkeypatch.setattr(server.control, "answer", hanging)
        peer = Peer(server.endpoints[0])
        peer.send("hello", {})
        began.wait()
        assert get(server.metrics_url, "/healthz") == (503, "stuck: control, shard-0\n")
        gate.set()
        peer.receive()
        until(lambda: get(server.metrics_url, "/healthz") == OK_ALIVE)
        peer.socket.close()


def test_a_thread_of_python_s_that_hangs_is_named(models, monkeypatch, gate):
    began = threading.Event()

    def hang(self):
        began.set()
        gate.wait()

    monkeypatch.setattr(Connections, "_look_at_memory", hang)
    with serving(models, metrics=ANYWHERE) as server, opening(gate):
        began.wait()
        server._connections.worker._patience_s = 0.0
        assert get(server.metrics_url, "/healthz") == (503, "stuck: connections\n")


def test_a_thread_that_has_ended_is_stuck():
    worker = Worker("w", lambda: None)
    assert not worker.is_stuck()
    worker.start(lambda name, error: None)
    worker.join()
    assert worker.is_stuck()


def test_with_a_disk_that_cannot_be_written_it_is_alive_and_not_ready(models, tmp_path):
    options = {"state_dir": tmp_path, "durability": "checkpoint", "metrics": ANYWHERE}
    with serving(models, **options) as server:
        assert server._disk is not None
        assert get(server.metrics_url, "/readyz") == OK_READY
        server._disk.saver.read_only = "no space"
        said = "the disk cannot be written: no space\n"
        assert get(server.metrics_url, "/readyz") == (503, said)
        assert get(server.metrics_url, "/healthz") == OK_ALIVE
        server._disk.saver.read_only = None
        assert get(server.metrics_url, "/readyz") == OK_READY


def test_a_server_that_stops_is_alive_and_not_ready(models):
    with serving(models, metrics=ANYWHERE) as server:
        server._loop.is_stopping = True
        assert get(server.metrics_url, "/readyz") == (503, "stopping\n")
        assert get(server.metrics_url, "/healthz") == OK_ALIVE
        server._loop.is_stopping = False
