"""Streams whose state turns NaN, with client and real server."""

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.model.model import Model
from streamrnn_client import Client, PartialFailure, errors
from streamrnn_server.testing import serving
from tests.support.models import random_model

NAMES = ["soon", "later", "never"]
FIRST_INPUTS = np.array([1.0, 1e-20, 0.0], np.float32)
MAX_STEPS = 60


@pytest.fixture(scope="module")
def model():
    """A network that multiplies its state by 100 at each step."""
    drawn = random_model(np.random.default_rng(1), [("rnn_relu", 16)], 1, 2)
    parameters = {name: np.array(value) for name, value in drawn.parameters.items()}
    parameters["weight_hh_l0"][...] = 100 * np.eye(16, dtype=np.float32)
    parameters["weight_ih_l0"][...] = 1.0
    for name in ("bias_ih_l0", "bias_hh_l0"):
        parameters[name][...] = 0.0
    return Model(drawn.spec, parameters)


def inputs(seq):
    """Each stream's input of a step, float32[3, 1]."""
    return (FIRST_INPUTS if seq == 1 else np.zeros(3, np.float32))[:, None]


@pytest.fixture(scope="module")
def expected(model):
    """Outputs of steps 1, 2, ... of each stream, float32[MAX_STEPS, 3, 2]."""
    engine = Engine(model)
    rows = engine.rows(NAMES)
    return np.stack([np.array(engine.batch(rows, inputs(k + 1))) for k in range(MAX_STEPS)])


@pytest.fixture(scope="module")
def nan_at(expected):
    """Return the first step at which each stream's output is NaN."""
    is_nan = np.isnan(expected).any(axis=2)
    return [int(np.argmax(column)) + 1 if column.any() else None for column in is_nan.T]


@pytest.fixture(params=["checkpoint", "none"])
def client(request, model, tmp_path):
    options = {}
    if request.param == "checkpoint":
        options = {"state_dir": tmp_path, "durability": "checkpoint"}
    with serving({"m": model}, **options) as server, Client(server.endpoints[0]) as client:
        yield client


def run_until_nan(client, expected, first, nan_at):
    """Step all streams together up to the step that the first refuses; return its error."""
    rows = client.rows(NAMES)
    for seq in range(first, nan_at):
        assert np.array_equal(client.batch(rows, inputs(seq)), expected[seq - 1])
    with pytest.raises(PartialFailure) as caught:
        client.batch(rows, inputs(nan_at))
    for k in (1, 2):
        assert np.array_equal(caught.value.results[NAMES[k]], expected[nan_at - 1, k])
    assert set(caught.value.errors) == {NAMES[0]}
    return caught.value.errors[NAMES[0]]


def test_the_error_names_the_step_and_others_go_on(client, expected, nan_at):
    soon, later, never = nan_at
    assert 1 < soon < later < MAX_STEPS
    assert never is None
    error = run_until_nan(client, expected, 1, soon)
    assert isinstance(error, errors.Quarantined)
    assert error.detail["seq"] == soon
    assert f"turned NaN at step {soon}" in str(error)
    rows = client.rows(NAMES)
    assert rows.last_seqs == (soon, soon, soon)
    for seq in range(soon + 1, later):
        with pytest.raises(PartialFailure) as caught:
            client.batch(rows, inputs(seq))
        assert set(caught.value.errors) == {"soon"}
        for k in (1, 2):
            assert np.array_equal(caught.value.results[NAMES[k]], expected[seq - 1, k])
    frozen = client.stream("soon")
    with pytest.raises(errors.Quarantined, match=f"at step {soon}"):
        frozen.step(inputs(2)[0])
    with pytest.raises(errors.Quarantined, match=f"at step {soon}"):
        frozen.export()
    assert client.stats()["num_quarantined"] == 1


@pytest.mark.parametrize("cure", ["reset", "close", "rollback"])
def test_a_quarantined_stream_works_again_after_rollback(client, expected, nan_at, cure):
    durable = client.hello().durability != "none"
    rows = client.rows(NAMES)
    for seq in (1, 2, 3):
        client.batch(rows, inputs(seq))
    stream = client.stream("soon")
    if cure == "rollback":
        if not durable:
            with pytest.raises(errors.NotSupported):
                stream.snapshot("three")
            return
        assert stream.snapshot("three") == 3
    run_until_nan(client, expected, 4, nan_at[0])
    first = 1
    if cure == "reset":
        stream.reset()
        assert stream.last_seq == nan_at[0] + 1
    elif cure == "close":
        assert stream.close() is True
        stream = client.stream("soon")
        assert stream.last_seq == 0
    else:
        assert stream.rollback("three") == nan_at[0] + 1
        first = 4
    for seq in range(first, nan_at[0]):
        assert np.array_equal(stream.step(inputs(seq)[0]), expected[seq - 1, 0])
    with pytest.raises(errors.Quarantined):
        stream.step(inputs(2)[0])
