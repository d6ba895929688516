"""The Python client with the real server."""

import asyncio
import itertools

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.model.spec import InputSpec, OutputSpec
from streamrnn_client import Client, PartialFailure, StateLost, aio, errors
from streamrnn_server.testing import serving
from tests.support.models import random_model

DAYS = ("mon", "tue", "wed")


@pytest.fixture(scope="module")
def model():
    return random_model(np.random.default_rng(5), layers=[("gru", 12), ("lstm", 9)])


@pytest.fixture(scope="module")
def server(model):
    with serving({"m": model}) as server:
        yield server


@pytest.fixture
def client(server):
    with Client(server.endpoints[0]) as client:
        yield client


numbers = itertools.count()


@pytest.fixture
def stream(client):
    return client.stream(f"stream-{next(numbers)}")


def draw(model, *shape):
    size = (*shape, model.spec.num_inputs)
    return np.random.default_rng(7).normal(size=size).astype(np.float32)


def test_step_steps_and_reset_are_the_engines(model, stream):
    x = draw(model, 70)
    expected = Engine(model).steps("a", x)
    assert np.array_equal(stream.steps(x[:50]), expected[:50])
    assert np.array_equal(np.array([stream.step(row) for row in x[50:]]), expected[50:])
    assert stream.last_seq == 70
    stream.reset()
    assert stream.last_seq == 71
    assert np.array_equal(
        stream.step(dict(zip(stream.input_names, x[0], strict=True))), expected[0]
    )


def test_many_streams_agree_with_the_engine(model, client):
    ids = [f"many-{k}" for k in range(300)] + list(range(300))
    x = draw(model, 600)
    engine = Engine(model)
    expected = engine.batch(engine.rows(ids), x)
    rows = client.rows(ids)
    assert np.array_equal(client.batch(rows, x), expected)
    again = client.step_many(dict(zip(ids, x, strict=True)))
    assert np.array_equal(np.array(list(again.values())), engine.batch(engine.rows(ids), x))


def test_step_numbers_follow_the_protocol_s_rules(model, stream):
    x = draw(model, 40)
    outputs = stream.steps(x)
    assert np.array_equal(stream.step(x[39], seq=40), outputs[39])
    assert np.array_equal(stream.steps(x[30:], seq=31), outputs[30:])
    with pytest.raises(errors.Conflict):
        stream.step(x[0], seq=40)
    with pytest.raises(errors.Stale):
        stream.step(x[0], seq=1)
    with pytest.raises(errors.Gap) as caught:
        stream.step(x[0], seq=99)
    assert caught.value.detail["expected"] == 41
    assert stream.resync() == 40


def test_a_bad_value_is_named_and_takes_no_number(model, stream):
    x = draw(model, 40)
    x[33, 1] = np.inf
    with pytest.raises(errors.BadValue, match="step 33") as caught:
        stream.steps(x)
    assert stream.input_names[1] in str(caught.value)
    done = len(caught.value.completed)
    assert done == stream.last_seq
    x[33, 1] = 0
    rest = stream.steps(x[done:])
    assert np.array_equal(
        np.concatenate([caught.value.completed, rest]), Engine(model).steps("a", x)
    )


def test_a_bad_item_fails_itself_only(model, client):
    rows = client.rows(["bad-1", "bad-2", "bad-3"])
    x = draw(model, 3)
    expected = [Engine(model).step({"a": row})["a"] for row in x]
    x[1, 0] = np.nan
    with pytest.raises(PartialFailure) as caught:
        client.batch(rows, x)
    results = caught.value.results
    assert set(results) == {"bad-1", "bad-3"}
    assert np.array_equal(results["bad-1"], expected[0])
    assert np.array_equal(results["bad-3"], expected[2])
    assert isinstance(caught.value.errors["bad-2"], errors.BadValue)
    assert rows.last_seqs == (1, 0, 1)


def test_a_stream_closed_by_another_client_raises_state_lost(server, model, stream):
    stream.step(draw(model))
    with Client(server.endpoints[0]) as another:
        known = another.stream(stream.id)
        assert known.last_seq == 1
        assert known.close()
    with pytest.raises(StateLost, match="not started again"):
        stream.step(draw(model))


def test_a_stream_that_has_expired_is_a_loss_that_says_for_how_long_it_was_idle(model, tmp_path):
    durable = {"state_dir": tmp_path, "durability": "checkpoint", "checkpoint_interval_s": 0.05}
    with (
        serving({"m": model}, **durable, time_to_live_s=1, idle_limit_s=1) as server,
        Client(server.endpoints[0]) as client,
    ):
        stream = client.stream("a")
        stream.step(draw(model))
        stats = client.stats()
        while stats["num_expired"] == 0 or stats["num_streams"] > 0:  # each question waits
            stats = client.stats()
        with pytest.raises(StateLost, match=r"idle for \d+ s, and has expired") as caught:
            stream.step(draw(model))
        assert caught.value.detail["idle_s"] >= 2
        assert client.stream("a").last_seq == 0


def test_the_expired_error_has_its_idle_time():
    error = errors.from_wire(["expired", "", {"stream": "a", "idle_s": 600}])
    assert isinstance(error, errors.Expired)
    assert error.idle_s == 600
    assert "idle for 600 s" in str(error)
    without = errors.from_wire(["expired", "", None])
    assert isinstance(without, errors.Expired)
    assert without.idle_s is None


def test_unnumbered_streams(model, client):
    x = draw(model, 40)
    stream = client.stream("unnumbered", numbered=False)
    assert np.array_equal(stream.steps(x), Engine(model).steps("a", x))
    assert stream.last_seq == 0


def test_shards_are_one_server(model):
    with serving({"m": model}, num_shards=2) as server, Client(server.endpoints[0]) as client:
        ids = [f"s{k}" for k in range(100)]
        x = draw(model, 100)
        engine = Engine(model)
        assert np.array_equal(client.batch(client.rows(ids), x), engine.batch(engine.rows(ids), x))
        stats = client.stats()
        assert stats["num_streams"] == 100
        assert all(shard["num_streams"] > 0 for shard in stats["shards"])
        client._driver.session._moved = dict.fromkeys(range(16384), server.endpoints[1])
        again = client.step_many(dict(zip(ids, x, strict=True)))
        assert np.array_equal(np.array(list(again.values())), engine.batch(engine.rows(ids), x))


def test_asyncio(server, model):
    x = draw(model, 30)

    async def main():
        async with aio.Client(server.endpoints[0]) as client:
            streams = await client.streams([f"aio-{k}" for k in range(50)])
            return await asyncio.gather(*(stream.steps(x) for stream in streams))

    expected = Engine(model).steps("a", x)
    for outputs in asyncio.run(main()):
        assert np.array_equal(outputs, expected)


def test_names_and_categories_reach_the_model():
    inputs = (
        InputSpec("day", kind="categorical", categories=DAYS, num_categories=3),
        InputSpec("load", unit="MW", missing="hold", center=2.0, scale=3.0),
    )
    model = random_model(
        np.random.default_rng(1), [("gru", 5)], inputs=inputs, outputs=[OutputSpec("next")]
    )
    with serving({"load": model}) as server, Client(server.endpoints[0]) as client:
        stream = client.stream("s")
        x = {"load": [1.0, float("nan"), 3.0], "day": ["mon", "wed", 1]}
        expected = Engine(model).steps("s", np.array([[0, 1], [2, np.nan], [1, 3]], np.float32))
        assert np.array_equal(stream.steps(x), expected)
        with pytest.raises(errors.BadValue, match="day"):
            stream.step([7, 1])
        assert stream.output_names == ("next",)
