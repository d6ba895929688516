"""Export, import, fork, snapshot and rollback, with clients and real server."""

import asyncio

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn_client import Client, aio, errors
from streamrnn_server.testing import serving
from tests.support.models import random_model


@pytest.fixture(scope="module")
def model():
    return random_model(np.random.default_rng(6), [("lstm", 12)], 3, 2)


@pytest.fixture(scope="module", params=[1, 2])
def address(model, tmp_path_factory, request):
    directory = tmp_path_factory.mktemp("state")
    options = {"checkpoint_interval_s": 3600.0, "num_shards": request.param}
    with serving({"m": model}, state_dir=directory, durability="checkpoint", **options) as server:
        yield server.endpoints[0]


@pytest.fixture
def client(address):
    with Client(address) as client:
        yield client


@pytest.fixture
def x():
    return np.random.default_rng(7).standard_normal((60, 3)).astype(np.float32)


@pytest.fixture
def name(request):
    return request.node.name


def equal(y, expected):
    return np.array_equal(np.asarray(y), np.asarray(expected))


def test_steps_of_a_fork_do_not_change_the_original(client, model, x, name):
    expected = Engine(model).steps("s", x)
    stream = client.stream(name)
    stream.steps(x[:20])
    branch = stream.fork(name + " branch")
    assert (branch.last_seq, branch.durable_seq, branch.window) == (20, 20, 16)
    other = branch.steps(x[40:])
    assert equal(stream.steps(x[20:]), expected[20:])
    engine = Engine(model)
    engine.steps("s", x[:20])
    assert equal(other, engine.steps("s", x[40:]))
    with pytest.raises(errors.Exists):
        stream.fork(branch.id)


def test_an_export_goes_on_elsewhere(client, model, x, name):
    expected = Engine(model).steps("s", x)
    stream = client.stream(name)
    stream.steps(x[:20])
    record = stream.export()
    copied = client.import_stream(name + " copy", record)
    assert copied.last_seq == copied.durable_seq == 20
    assert equal(copied.steps(x[20:]), expected[20:])
    anew = client.stream(name + " anew", initial_state=record, window=4)
    assert (anew.last_seq, anew.window) == (0, 4)
    assert equal(anew.steps(x[20:]), expected[20:])
    stream.step(x[20])
    with pytest.raises(errors.Exists):
        client.import_stream(name, record)
    with pytest.raises(errors.Damaged):
        client.import_stream(name + " torn", record[:-1])
    with pytest.raises(errors.BadParams):
        client.import_stream(name + " 7", 7)


def lose_answers(client, monkeypatch, num_answers):
    """Drop the next answers that come, as a broken connection would."""
    client.hello()
    exchange = client._driver._link().exchange
    receive = exchange.receive
    left = [None] * num_answers

    def lossy(payload):
        if left:
            left.pop()
        else:
            receive(payload)

    monkeypatch.setattr(exchange, "receive", lossy)
    return left


@pytest.mark.parametrize("method", ["fork", "import", "open"])
def test_an_answer_that_was_lost_comes_again(address, model, x, name, method, monkeypatch):
    expected = Engine(model).steps("s", x)
    with Client(address, resend_s=0.01) as client:
        stream = client.stream(name)
        stream.steps(x[:20])
        stream.sync()
        record = stream.export()
        left = lose_answers(client, monkeypatch, 1)
        if method == "fork":
            made = stream.fork(name + " made")
        elif method == "import":
            made = client.import_stream(name + " made", record)
        else:
            made = client.stream(name + " made", initial_state=record)
        assert left == []
        assert made.last_seq == (0 if method == "open" else 20)
        assert equal(made.steps(x[20:]), expected[20:])
        assert equal(stream.steps(x[20:]), expected[20:])


def test_a_snapshot_is_brought_back(client, model, x, name):
    stream = client.stream(name)
    expected = Engine(model).steps("s", x)
    stream.steps(x[:10])
    assert stream.snapshot("ten") == 10
    stream.steps(x[40:50])
    assert stream.rollback("ten") == 21
    assert equal(stream.steps(x[10:20]), expected[10:20])
    assert stream.sync() == stream.durable_seq == 31
    stream.steps(x[40:50])
    assert stream.rollback() == 42
    assert equal(stream.steps(x[20:30]), expected[20:30])
    with pytest.raises(errors.UnknownSnapshot):
        stream.rollback("eleven")
    assert stream.last_seq == 52


def test_sync_writes_all_streams(client, x, name):
    rows = client.rows([f"{name} {k}" for k in range(300)])
    client.batch(rows, np.repeat(x[:1], 300, axis=0))
    assert {stream.durable_seq for stream in client.streams(rows.ids)} == {0}
    assert client.sync() is True
    assert {stream.durable_seq for stream in client.streams(rows.ids)} == {1}


def test_at_the_bound_a_call_waits_for_the_disk(address, model, x, name):
    with Client(address, max_kept_steps=20) as client:
        stream = client.stream(name)
        assert equal(stream.steps(x), Engine(model).steps("s", x))
        assert stream.durable_seq >= 36  # without a checkpoint but those that it asked for
    with pytest.raises(errors.BadParams, match="max_kept_bytes"):
        Client(address, max_kept_bytes=0)


def test_the_next_client_can_survive_what_the_first_left(address, x, name):
    with Client(address) as client:
        client.stream(name).steps(x[:20])
    with Client(address) as client:
        stream = client.stream(name)
        assert stream.last_seq == stream.durable_seq == 20


def test_every_method_works_with_asyncio(address, model, x, name):
    expected = Engine(model).steps("s", x)

    async def main():
        async with aio.Client(address) as client:
            stream = await client.stream(name)
            await stream.steps(x[:20])
            branch = await stream.fork(name + " branch")
            record = await stream.export()
            copied = await client.import_stream(name + " copy", record)
            anew = await client.stream(name + " anew", initial_state=record)
            assert await stream.snapshot("twenty") == 20
            await stream.steps(x[:10])
            assert await stream.rollback("twenty") == 31
            streams = (stream, branch, copied, anew)
            outputs = await asyncio.gather(*(each.steps(x[20:]) for each in streams))
            assert await stream.sync() == stream.last_seq
            assert await client.sync() is True
            return outputs

    for outputs in asyncio.run(main()):
        assert equal(outputs, expected[20:])


def test_durability_methods_need_a_state_directory(model, x):
    with serving({"m": model}) as server, Client(server.endpoints[0]) as client:
        stream = client.stream("s")
        expected = Engine(model).steps("s", x)
        stream.steps(x[:20])
        branch = stream.fork("branch")
        copied = client.import_stream("copy", stream.export())
        for each in (stream, branch, copied):
            assert equal(each.steps(x[20:]), expected[20:])
        for call in (stream.sync, lambda: stream.snapshot("s"), stream.rollback, client.sync):
            with pytest.raises(errors.NotSupported):
                call()
