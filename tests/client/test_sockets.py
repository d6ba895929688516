"""The blocking client over real sockets."""

import datetime
import enum
import gc
import subprocess
import sys
import threading
from typing import Any, cast

import numpy as np
import pytest
import zmq

import streamrnn_client
from streamrnn_client import Client, PartialFailure, StateLost, errors
from tests.support.fake_server import SocketServer

FAST: dict[str, Any] = {"timeout_s": 10.0, "resend_s": 0.05}


@pytest.fixture
def server():
    with SocketServer() as server:
        yield server


def test_the_first_page_of_the_readme(server):
    with Client(server.address) as client:
        stream = client.stream("sensor-7", model="sum")
        assert (stream.last_seq, stream.durable_seq, stream.window) == (0, 0, 16)
        y = stream.step([1, 2])
        assert y.dtype == np.float32
        assert y.tolist() == [1, 2]
        assert stream.step({"b": 1, "a": 0}).tolist() == [1, 3]
        outputs = stream.steps(np.ones((100, 2)))
        assert outputs.shape == (100, 2)
        assert outputs[-1].tolist() == [101, 103]
        assert stream.output_names == ("sum_a", "sum_b")
        y[0] = 9  # the caller's own
        ys = client.step_many({"sensor-7": [0, 0], "sensor-8": {"a": 4, "b": 5}}, model="sum")
        assert ys["sensor-7"].tolist() == [101, 103]
        assert ys["sensor-8"].tolist() == [4, 5]
        assert client.stats()["num_steps"] == 104
        assert set(client.models()) == {"sum", "sum3"}
        assert client.hello().instance == "first"
        assert "sensor-7" in repr(stream)
    # Leaving the block closed no stream: whoever comes next goes on.
    with Client(server.address) as client:
        assert client.stream("sensor-7", "sum").last_seq == 103
        assert len(server.server.streams) == 2


def test_lost_and_repeated_answers_change_nothing(server):
    with Client(server.address, **FAST) as client:
        stream = client.stream("a", "sum")
        server.lose_replies = 2
        assert stream.step([1, 1]).tolist() == [1, 1]
        server.lose_requests = 2
        assert stream.step([1, 1]).tolist() == [2, 2]
        server.send_twice = True
        assert stream.steps(np.ones((50, 2)))[:, 0].tolist() == list(range(3, 53))
        server.garble = True
        assert stream.step([1, 1]).tolist() == [53, 53]
    assert server.server.num_applied == 53


def test_a_connection_comes_back_with_the_server_and_its_state(server):
    with Client(server.address, **FAST) as client:
        stream = client.stream("a", "sum")
        stream.step([1, 1])
        server.stop()
        server.start_again(keep_state=True)
        assert stream.step([1, 1]).tolist() == [2, 2]


def test_a_restart_is_reported_loudly(server):
    with Client(server.address, **FAST) as client:
        stream = client.stream("a", "sum")
        stream.step([1, 1])
        client.step_many({"b": [1, 1]}, "sum")
        server.stop()
        server.start_again()
        with pytest.raises(StateLost, match=r"'a' is lost; its last step was 1.*first.*second"):
            stream.step([1, 1])
        with pytest.raises(StateLost):
            stream.reset()
        with pytest.raises(StateLost):
            stream.resync()
        with pytest.raises(PartialFailure) as caught:
            client.step_many({"b": [1, 1], "c": [1, 1]}, "sum")
        assert isinstance(caught.value.errors["b"], StateLost)
        assert caught.value.results["c"].tolist() == [1, 1]
        anew = client.stream("a", "sum")
        assert anew.step([1, 1]).tolist() == [1, 1]
        assert stream.id == anew.id
        with pytest.raises(StateLost):
            stream.step([1, 1])


def test_an_unreachable_server_and_a_silent_one_raise_different_errors(server):
    with Client(server.address, timeout_s=0.2, resend_s=0.05) as client:
        stream = client.stream("a", "sum")
        server.is_mute = True
        with pytest.raises(errors.RequestTimeout, match=r"did not answer step within 0\.2 s"):
            stream.step([1, 2])
        server.stop()
        with pytest.raises(errors.ConnectionLost, match="is a server running there") as caught:
            stream.step([1, 2])
        assert isinstance(caught.value, ConnectionError)
        assert caught.value.code == "connection_lost"
        assert caught.value.detail["endpoint"] == server.address


def test_an_unnumbered_step_is_sent_once(server):
    with Client(server.address, timeout_s=0.3, resend_s=0.01) as client:
        stream = client.stream("a", "sum", numbered=False)
        before = server.num_received
        server.lose_requests = 10**6
        with pytest.raises(errors.RequestTimeout, match="may have been applied"):
            stream.step([1, 2])
        server.lose_requests = 0
        assert server.num_received == before + 1
        assert stream.steps(np.ones((40, 2)))[-1].tolist() == [40, 40]
        stream.reset()
        assert stream.step([1, 2]).tolist() == [1, 2]
        with pytest.raises(errors.MixedNumbering):
            stream.step([1, 2], seq=1)
        with pytest.raises(errors.MixedNumbering):
            client.stream("a", "sum")


def test_three_shards_are_one_server():
    with SocketServer(num_shards=3) as server, Client(server.address) as client:
        ids = [f"s{k}" for k in range(60)]
        streams = client.streams(ids, "sum")
        for k, stream in enumerate(streams):
            assert stream.step([k, 0]).tolist() == [k, 0]
        rows = client.rows(ids, "sum")
        for factor in (2, 3):
            y = client.batch(rows, np.stack([np.arange(60), np.zeros(60)], axis=1))
            assert y[:, 0].tolist() == [factor * k for k in range(60)]
        assert rows.last_seqs == (3,) * 60
        # An own idea of the map is corrected by the server.
        client._driver.session._moved = dict.fromkeys(range(16384), server.endpoints[2])
        assert streams[5].step([1, 0]).tolist() == [16, 0]
        assert client.step_many({"new": [1, 1], "other": [2, 2]}, "sum")["other"].tolist() == [2, 2]


def test_busy_is_waited_out(server):
    with Client(server.address, **FAST) as client:
        stream = client.stream("a", "sum")
        rows = client.rows(range(10), "sum")
        server.server.busy_for = 3
        assert stream.step([1, 1]).tolist() == [1, 1]
        server.server.busy_for = 5
        assert client.batch(rows, np.ones((10, 2))).tolist() == [[1, 1]] * 10
        server.server.busy_for = 2
        assert stream.steps(np.ones((32, 2)))[-1].tolist() == [33, 33]


def test_the_errors_of_the_server_have_their_classes(server):
    with Client(server.address) as client:
        with pytest.raises(errors.UnknownModel, match="did you mean 'sum'"):
            client.stream("a", "sun")
        with pytest.raises(errors.UnknownModel, match="2 are served"):
            client.stream("a")
        stream = client.stream("a", "sum")
        with pytest.raises(errors.WrongModel):
            client.stream("a", "sum3")
        with pytest.raises(errors.BadValue, match=r"input 'b' \(number 1\) of step 0") as caught:
            stream.step([1, np.inf])
        assert caught.value.detail["stream"] == "a"
        assert caught.value.code == "bad_value"
        assert isinstance(caught.value, ValueError)
        with pytest.raises(errors.WrongLength, match=r"\(3,\).*\(2,\)"):
            stream.step([1, 2, 3])
        with pytest.raises(errors.BadName, match="did you mean 'a'"):
            stream.step({"aa": 1, "b": 2})
        assert stream.step([1, 2]).tolist() == [1, 2]
    with Client(server.address) as another, pytest.raises(errors.WrongModel, match="'sum3'"):
        another.stream("a", "sum3")


class Number(enum.IntEnum):
    ONE = 1


class Text(str, enum.Enum):  # noqa: UP042 (the older form, which users have)
    ONE = "1"


class Name(str):
    pass


INVALID_IDS: dict[str, list[Any]] = {
    "128 bytes": ["", "x" * 129],
    "2\\*\\*64": [-1, 2**64, 10**5000],
    "a float": [1.0, 1.5, float("nan"), np.float64(1)],
    "a bool": [True, np.bool_(True)],
    "of class Number; .* give 1": [Number.ONE],
    "of class Text; .* give '1'": [Text.ONE],
    "of class Name; .* give '1'": [Name("1")],
    "nil": [None],
    "a bin": [b"a"],
    "valid UTF-8": ["\ud800"],
    "a tuple": [(1,)],
    "a datetime": [datetime.datetime(2026, 1, 1)],
}


@pytest.mark.parametrize("words", INVALID_IDS)
def test_an_invalid_stream_id_is_refused_wherever_one_is_taken(server, words):
    with Client(server.address) as client:
        source = client.stream("source", "sum")
        client.streams([1, "1"], "sum")  # what some of the ids are equal to
        record = source.export()
        for take in (
            lambda stream: client.stream(stream, "sum"),
            lambda stream: client.streams(["a", stream], "sum"),
            lambda stream: client.rows([stream], "sum"),
            lambda stream: client.step_many({stream: [1, 2]}, "sum"),
            lambda stream: client.import_stream(stream, record, "sum"),
            lambda stream: client.stream(stream, "sum", initial_state=record),
            lambda stream: source.fork(stream),
        ):
            for stream in INVALID_IDS[words]:
                with pytest.raises(errors.BadParams, match=words):
                    take(stream)
        assert server.server.num_applied == 0


@pytest.mark.parametrize("seq", [True, 1.0, "1", 0, -1])
def test_a_number_of_a_step_is_a_whole_number_from_one(server, seq):
    with Client(server.address) as client:
        stream = client.stream("a", "sum")
        for call in (stream.step, stream.steps):
            with pytest.raises(errors.BadParams, match="numbered"):
                call([[1, 2]], seq=seq)
        assert stream.step([1, 2], seq=cast(int, np.int64(1))).tolist() == [1, 2]


def test_one_id_and_a_list_of_steps_are_not_taken_for_many(server):
    with Client(server.address) as client:
        for streams in (1, 1.5, True, None, {"a": 1}):
            with pytest.raises(errors.BadParams, match="give a list of stream ids"):
                client.streams(cast(Any, streams), "sum")
        with pytest.raises(errors.BadParams, match="give a mapping"):
            client.step_many(cast(Any, [[1, 2]]), "sum")


def test_ids_of_numpy_and_numbers_are_ids(server):
    with Client(server.address) as client:
        first = client.stream(cast(int, np.int64(7)), "sum")
        first.step([1, 2])
        assert client.stream(7, "sum").last_seq == 1
        assert client.stream("7", "sum").last_seq == 0
        ids = cast("list[int]", list(np.arange(7, 9)))
        assert client.step_many({each: [1, 1] for each in ids}, "sum")[7].tolist() == [2, 3]
        assert client.stream(8, "sum").last_seq == 1
        assert client.streams(cast("list[str]", np.array(["u", "v"])), "sum")[1].id == "v"
        forked = first.fork(cast(int, np.uint64(2**64 - 1)))
        assert forked.id == 2**64 - 1
        assert type(forked.id) is int
        with pytest.raises(errors.BadParams, match="named twice"):
            client.rows(["a", "a"], "sum")
        with pytest.raises(errors.BadParams, match="list of stream ids"):
            client.rows("abc", "sum")


def test_a_closed_stream_and_a_closed_client_say_so(server):
    client = Client(server.address)
    stream = client.stream("a", "sum")
    stream.step([1, 2])
    assert stream.close() is True
    with pytest.raises(errors.UnknownStream, match="closed by this client"):
        stream.step([1, 2])
    again = client.stream("a", "sum")
    assert again.last_seq == 0
    client.close()
    client.close()
    with pytest.raises(errors.ClientClosed):
        again.step([1, 2])
    with pytest.raises(errors.ClientClosed):
        client.hello()


@pytest.mark.parametrize("address", ["", "127.0.0.1:7070", None, "tcp://", "nonsense://a"])
def test_an_invalid_address_is_refused(address):
    with pytest.raises(errors.BadParams, match=r"address|connect"), Client(address) as client:
        client.hello()


@pytest.mark.parametrize("times", [{"timeout_s": 0}, {"resend_s": -1}, {"timeout_s": float("nan")}])
def test_invalid_times_are_refused(times):
    with pytest.raises(errors.BadParams, match="seconds above 0"):
        Client("tcp://127.0.0.1:1", **times)


def in_threads(num_threads, work):
    """Run work(k) in threads and raise what any of them raised."""
    failures: list[BaseException] = []

    def guarded(k):
        try:
            work(k)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(k,)) for k in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_threads_share_a_client_and_even_a_stream(server):
    with Client(server.address) as client:
        shared = client.stream("shared", "sum")
        rows = client.rows(["r1", "r2"], "sum")

        def work(k):
            own = client.stream(f"own-{k}", "sum")
            for count in range(1, 31):
                assert own.step([1, 0]).tolist() == [count, 0]
                shared.step([1, 1])
                client.batch(rows, np.ones((2, 2), np.float32))

        in_threads(4, work)
        assert shared.last_seq == 120
        assert shared.step([0, 0]).tolist() == [120, 120]
        assert rows.last_seqs == (120, 120)


def test_closing_a_client_wakes_waiting_calls(server):
    client = Client(server.address, timeout_s=60)
    stream = client.stream("a", "sum")
    server.is_mute = True
    before = server.num_received
    caught = []

    def wait():
        with pytest.raises(errors.ClientClosed) as error:
            stream.step([1, 2])
        caught.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]  # one waits, two want its stream
    for thread in threads:
        thread.start()
    while server.num_received == before:
        threading.Event().wait(0.001)
    client.close()
    for thread in threads:
        thread.join(timeout=30)
    assert len(caught) == 3


def test_a_thread_that_ends_leaves_no_socket_behind(server):
    with Client(server.address) as client:
        in_threads(3, lambda k: client.stream(k, "sum"))
        gc.collect()
        assert len(list(client._driver._links)) == 0


def test_a_peer_that_is_no_streamrnn_server_is_named():
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    with context.socket(zmq.ROUTER) as router:
        router.linger = 0
        port = router.bind_to_random_port("tcp://127.0.0.1")

        done = threading.Event()

        def answer():
            while not done.is_set():
                if router.poll(10):
                    identity, _ = router.recv_multipart()
                    router.send_multipart([identity, b"HTTP/1.1 400"])

        thread = threading.Thread(target=answer)
        thread.start()
        with (
            Client(f"tcp://127.0.0.1:{port}", timeout_s=0.3, resend_s=0.05) as client,
            pytest.raises(errors.RequestTimeout, match="is it another service"),
        ):
            client.hello()
        done.set()
        thread.join()


def test_another_protocol_is_refused_with_advice(server):
    server.server._hello = lambda call, shard: {"protocol": 2}
    with Client(server.address) as client, pytest.raises(errors.NotSupported, match="protocol 2"):
        client.stream("a", "sum")


def test_importing_the_client_loads_no_numba_and_no_zmq_until_it_is_used():
    code = (
        "import sys, streamrnn_client; assert 'zmq' not in sys.modules;"
        "streamrnn_client.Client; import streamrnn_client.aio, streamrnn_client.protocol;"
        "assert 'zmq' in sys.modules;"
        "assert not {'numba', 'llvmlite', 'streamrnn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert set(streamrnn_client.__all__) <= set(dir(streamrnn_client)) | {
        name for name in streamrnn_client.__all__ if getattr(streamrnn_client, name)
    }
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = streamrnn_client.nothing_here
