"""One numbered step on one shard: what goes straight, and what it leaves to the general way."""

import random
import signal
import threading
from typing import Any

import numpy as np
import pytest

from streamrnn_client import Client, errors
from streamrnn_client._drivers.blocking import _Link
from streamrnn_client._session.exchange import Exchange
from streamrnn_client._session.session import Session
from streamrnn_client.protocol import MAX_SEQ
from tests.support.fake_server import SocketServer

FAST: dict[str, Any] = {"timeout_s": 20.0, "resend_s": 0.01}


def refuse(*_args, **_options):
    raise AssertionError("this is the general way")


@pytest.fixture
def server():
    with SocketServer() as server:
        yield server


@pytest.fixture
def durable():
    with SocketServer(durability="checkpoint") as server:
        yield server


@pytest.mark.parametrize("durability", ["none", "checkpoint"])
@pytest.mark.parametrize("x", [[1.0, 2.0], [1, 2], np.array([1, 2], np.float32), {"a": 1, "b": 2}])
def test_a_numbered_step_on_one_shard_goes_straight(monkeypatch, durability, x):
    with SocketServer(durability=durability) as server, Client(server.address) as client:
        stream = client.stream("a", "sum")
        with monkeypatch.context() as patch:
            patch.setattr(_Link, "work", refuse)
            patch.setattr(Exchange, "submit", refuse)
            patch.setattr(Session, "step", refuse)
            y = [stream.step(x).tolist() for _ in range(5)]
        assert y == [[k, 2 * k] for k in range(1, 6)]
        assert stream.last_seq == 5
        server.stop()
        server.start_again(keep_state=True)
        assert stream.step(x).tolist() == [6, 12]


@pytest.mark.parametrize(
    ("seq", "came"),
    [
        (0, "0"),
        (-1, "-1"),
        (MAX_SEQ, str(MAX_SEQ)),
        (MAX_SEQ - 1, str(MAX_SEQ - 1)),
        (1 << 16_609, "a number of 16610 bits"),
    ],
    ids=["none", "negative", "last", "too few left", "thousands of digits"],
)
def test_a_number_out_of_bounds_is_refused_with_the_bounds(server, seq, came):
    with Client(server.address) as client:
        stream = client.stream("a", "sum")
        with pytest.raises(
            errors.BadParams, match=f"seq is {came}; .* from 1, .* may have {2**62 - 2} "
        ):
            stream.steps([[1, 2], [1, 2]], seq=seq)
        assert stream.step([1, 2]).tolist() == [1, 2]


def test_shards_unnumbered_streams_and_given_numbers_go_the_general_way(monkeypatch):
    monkeypatch.setattr("streamrnn_client._drivers.blocking.BlockingDriver._step_straight", refuse)
    with SocketServer(num_shards=2) as server, Client(server.address) as client:
        assert client.stream("a", "sum").step([1, 2]).tolist() == [1, 2]
    with SocketServer() as server, Client(server.address) as client:
        assert client.stream("a", "sum", numbered=False).step([1, 2]).tolist() == [1, 2]
        assert client.stream("b", "sum").step([1, 2], seq=1).tolist() == [1, 2]


def test_any_mishap_is_mended_as_on_the_general_way(durable):
    chance = random.Random(4)
    total = np.zeros(2, np.float32)
    instances = iter(range(10**6))

    def restart(server):
        server.stop()
        server.start_again(f"instance {next(instances)}")

    mishaps = [
        lambda server: setattr(server, "lose_requests", chance.randint(1, 2)),
        lambda server: setattr(server, "lose_replies", chance.randint(1, 2)),
        lambda server: setattr(server, "send_twice", chance.random() < 0.5),
        lambda server: setattr(server, "garble", chance.random() < 0.5),
        lambda server: setattr(server.server, "busy_for", chance.randint(1, 2)),
        restart,
    ]
    with Client(durable.address, **FAST) as client:
        stream = client.stream("a", "sum")
        for _ in range(120):
            if chance.random() < 0.4:
                chance.choice(mishaps)(durable)
            x = [float(chance.randint(0, 9)), float(chance.randint(0, 9))]
            total += np.array(x, np.float32)
            assert stream.step(x).tolist() == total.tolist()
        assert stream.last_seq == 120


def test_a_refused_step_takes_no_number(server):
    with Client(server.address) as client:
        stream = client.stream("a", "sum")
        for x in ([np.inf, 0.0], [1e300, 0.0]):
            with pytest.raises(errors.BadValue, match="input 'a'"):
                stream.step(x)
        with pytest.raises(errors.WrongLength):
            stream.step([1.0, 2.0, 3.0])
        assert stream.step([1.0, 2.0]).tolist() == [1, 2]
        assert stream.last_seq == 1
        stream.close()
        with pytest.raises(errors.UnknownStream, match="closed by this client"):
            stream.step([1.0, 2.0])


def test_a_step_without_an_answer_is_sent_again_until_its_time_is_over(server):
    with Client(server.address, timeout_s=1.0, resend_s=0.05) as client:
        stream = client.stream("a", "sum")
        server.lose_replies = 10**6
        with pytest.raises(errors.RequestTimeout, match="same input is safe") as caught:
            stream.step([1.0, 2.0])
        server.lose_replies = 0
        assert caught.value.detail["num_sends"] > 1
        with pytest.raises(errors.Conflict, match="got no answer"):
            stream.step([3.0, 4.0])
        assert stream.step([1.0, 2.0]).tolist() == [1, 2]
    assert server.server.num_applied == 1


def test_an_interrupted_step_leaves_its_number_in_doubt_and_its_stream_free(server):
    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Client(server.address) as client:
            stream = client.stream("a", "sum")
            server.lose_replies = 10**6
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                stream.step([1.0, 2.0])
            server.lose_replies = 0
            with pytest.raises(errors.Conflict, match="got no answer"):
                stream.step([3.0, 4.0])
            assert stream.step([1.0, 2.0]).tolist() == [1, 2]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_step_waits_its_turn_behind_another_thread_s(server):
    with Client(server.address, **FAST) as client:
        stream = client.stream("a", "sum")
        outputs: list[list[float]] = []

        def work():
            outputs.extend(stream.step([1.0, 0.0]).tolist() for _ in range(50))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert sorted(outputs) == [[k, 0] for k in range(1, 151)]


def test_a_full_log_makes_a_step_wait_for_the_disk(durable):
    with Client(durable.address, max_kept_steps=3) as client:
        stream = client.stream("a", "sum")
        for k in range(1, 11):
            assert stream.step([1.0, 0.0]).tolist() == [k, 0]
        assert durable.server.requests.count("sync") > 0
