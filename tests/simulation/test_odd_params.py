"""What a caller hands over by mistake: an error of the client's own, in words, and nothing sent."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest

from streamrnn_client import Client, errors
from streamrnn_client._session import batch, transfer
from streamrnn_client._session.session import Session
from tests.simulation.client import Simulation


def deep(depth):
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.fixture
def sim():
    sim = Simulation(1)
    sim.run(sim.session.hello(sim.exchange))
    return sim


@pytest.mark.parametrize(
    "params",
    [
        [2**64],
        [-(2**63) - 1],
        [{1, 2}],
        [object()],
        [datetime.datetime.now(datetime.UTC)],
        [np.zeros(3)],
        [np.float32(1)],
        [1j],
        ["\udcff"],
        [deep(5_000)],
        [deep(100_000)],
        {"a": 1},
        {1},
        "abc",
        None,
        7,
    ],
)
def test_what_messagepack_cannot_write_is_refused_in_words(sim, params):
    num_sends = sim.num_sends
    with pytest.raises(errors.BadParams, match=r"cannot be sent|expected are"):
        sim.run(Session.request(sim.session, sim.exchange, "sync", params))
    assert sim.num_sends == num_sends
    assert sim.exchange.is_idle


@pytest.mark.parametrize("method", [None, 7, b"sync", ["sync"], "\udcff"])
def test_a_method_must_be_a_name(sim, method):
    with pytest.raises(errors.BadParams):
        sim.run(Session.request(sim.session, sim.exchange, method, []))


def test_what_is_too_large_is_refused_before_the_server_cuts_the_connection(sim):
    for value in ("x" * 2**21, bytes(2**21), [1.5] * 2**18):
        with pytest.raises(errors.TooLarge, match="takes 1,048,576 at most"):
            sim.run(Session.request(sim.session, sim.exchange, "sync", [value]))
    record = bytes(2**21)
    with pytest.raises(errors.TooLarge):
        sim.run(transfer.import_stream(sim.session, sim.exchange, "a", record, "sum", True))


@pytest.mark.parametrize("window", ["16", 1.5, True, 0, -1, [16], float("nan")])
def test_a_window_must_be_a_number(sim, window):
    opening = batch.open_streams(sim.session, sim.exchange, ["a"], "sum", window, True)
    with pytest.raises(errors.BadParams, match="window is"):
        sim.run(opening)
    args = ("a", b"record", "sum", window, True)
    with pytest.raises(errors.BadParams, match="window is"):
        sim.run(transfer.open_with_state(sim.session, sim.exchange, *args))


@pytest.mark.parametrize("model", [7, ["sum"], {"sum"}, b"sum"])
def test_a_model_must_be_a_name(sim, model):
    with pytest.raises(errors.BadParams, match="model is"):
        sim.run(batch.open_streams(sim.session, sim.exchange, ["a"], model, None, True))


@pytest.mark.parametrize("name", [7.5, {1}, object(), "\udcff", 2**64])
def test_a_snapshots_name_must_be_one(sim, name):
    states, _ = sim.run(batch.open_streams(sim.session, sim.exchange, ["a"], "sum", None, True))
    for call in (transfer.snapshot, transfer.rollback):
        with pytest.raises(errors.StreamRNNClientError):
            sim.run(call(sim.session, sim.exchange, states[0], name))


@pytest.mark.parametrize("options", [{"timeout_s": "5"}, {"resend_s": None}, {"timeout_s": True}])
def test_times_of_a_client_must_be_numbers(options):
    with pytest.raises(errors.BadParams, match="number of seconds"):
        Client("tcp://127.0.0.1:1", **options)


@pytest.mark.parametrize("address", ["tcp://\udcff:7070", "udp://127.0.0.1:1"])
def test_an_address_must_be_one(address):
    with pytest.raises(errors.BadParams), Client(address, timeout_s=0.2) as client:
        client.hello()
