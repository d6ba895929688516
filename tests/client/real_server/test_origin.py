"""Inputs and outputs with an origin: the user's float64 numbers on both sides of the wire."""

import numpy as np

from streamrnn import Engine
from streamrnn.model.spec import InputSpec, OutputSpec
from streamrnn_client import Client
from streamrnn_server.testing import serving
from tests.support.models import random_model

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
