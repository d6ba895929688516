"""Inputs and outputs with an origin: the user's float64 numbers on both sides of the wire."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.model.spec import InputSpec, OutputSpec
from streamrnn_client import Client
from streamrnn_client.errors import UnknownModel
from streamrnn_server.live.table import ModelTable
from streamrnn_server.testing import serving
from tests.support.models import random_model
from tests.support.peer import Peer

AT = 1_000_000_000.0


def test_steps_chunks_batches_and_repeats_give_the_engines_numbers(rng):
    inputs = [InputSpec("count", difference=True, scale=3.0, origin=AT), InputSpec("b")]
    outputs = [OutputSpec("next", scale=3.0, difference_of="count", origin=AT), OutputSpec("c")]
    model = random_model(rng, [("gru", 5)], inputs, outputs, "identity")
    x = np.stack([AT + np.cumsum(rng.integers(0, 9, 40)), rng.normal(size=40)], axis=1)
    expected = Engine(model).steps("s", x)
    assert expected.dtype == np.float64
    with serving({"m": model}) as server, Client(server.endpoints[0]) as client:
        stream = client.stream("s")
        y = [*(stream.step(row.tolist()) for row in x[:5]), *stream.steps(x[5:20])]
        by_name = {"count": x[20:30, 0], "b": x[20:30, 1]}
        y += [*stream.steps(by_name), *(client.step_many({"s": row})["s"] for row in x[30:35])]
        rows = client.rows(["s"])
        y += [client.batch(rows, x[k : k + 1])[0] for k in range(35, 40)]
        assert y[-1].dtype == np.float64
        np.testing.assert_array_equal(np.array(y), expected)
        np.testing.assert_array_equal(stream.step(x[-1], seq=40), expected[-1])


def counting(rng):
    inputs = [InputSpec("count", difference=True, scale=3.0, origin=AT)]
    outputs = [OutputSpec("next", scale=3.0, difference_of="count", origin=AT)]
    return random_model(rng, [("gru", 5)], inputs, outputs, "identity")


@pytest.mark.parametrize("names", [("m",), ("m", "plain")])
def test_a_client_that_knows_no_origins_is_refused_by_name_and_serves_other_models(
    rng, monkeypatch, names
):
    """It says nothing in `models`, and opens by the name that it finds there."""
    models = {"m": counting(rng), "plain": random_model(rng, [("gru", 3)])}
    with serving({name: models[name] for name in names}) as server:
        address = server.endpoints[0]
        peer = Peer(address)
        with closing(peer.socket):
            assert [entry["name"] for entry in peer.ok("models", ["origins"])] == list(names)
            told, *others = [entry["name"] for entry in peer.ok("models")]
            assert told == "m (has origins: it needs a newer client)"
            assert others == list(names[1:])
            hostile: tuple[Any, ...] = (None, "origins", 3, [[], {}, None], {"origins": 1})
            for odd in hostile:
                assert peer.ok("models", odd)[0]["name"] == told
        monkeypatch.setattr("streamrnn_client._session.server_view.ORIGINS", "of no server")
        with Client(address) as client:
            with pytest.raises(UnknownModel, match=r"'m'.*it needs a newer client"):
                client.stream("s", model="m")
            for name in (told, None)[: 3 - len(names)]:
                with pytest.raises(UnknownModel, match="it needs a newer client"):
                    client.stream("s", model=name)
            if others:
                x = rng.normal(size=(3, models["plain"].spec.num_inputs)).astype(np.float32)
                y = client.stream("p", model="plain").steps(x)
                np.testing.assert_array_equal(y, Engine(models["plain"]).steps("p", x))
        monkeypatch.undo()
        with Client(address) as client:
            x = AT + np.arange(5.0)
            y = client.stream("s", model="m").steps(x)
            np.testing.assert_array_equal(y, Engine(models["m"]).steps("s", x[:, None]))


def test_a_server_that_knows_no_abilities_is_asked_as_before(rng, monkeypatch):
    asked, original = [], ModelTable.describe

    def note(self, params, *how):
        asked.append(params)
        return original(self, params, *how)

    with serving({"m": random_model(rng)}) as server:
        features = ("batch_columns", "received")
        monkeypatch.setattr("streamrnn_server.control.about.about.FEATURES", features)
        monkeypatch.setattr(ModelTable, "describe", note)
        with Client(server.endpoints[0]) as client:
            client.stream("s")
    assert asked == [[]]
