"""Models with layers of every kind, served: the engine's bits, through restarts and retries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.model.layers.frame import DenseSpec
from streamrnn.model.layers.memory import TimeConvSpec
from streamrnn.reference.model import ReferenceModel
from streamrnn_client import Client, errors
from streamrnn_server.testing import serving
from tests.kernels.graphs import GRAPHS, graph_model
from tests.support.models import model_with_name

NAMES = ("frame to frame", "stft", "causal", "input skip", "jordan", "masked", "first state")


@pytest.fixture(scope="module")
def models():
    rng = np.random.default_rng(11)
    return {name.replace(" ", "-"): graph_model(rng, name) for name in NAMES}


def inputs(model, *shape):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(*shape, model.spec.num_inputs)).astype(np.float32)
    if model.spec.mask_value is not None:
        x[..., ::3, :] = model.spec.mask_value
    return x


def test_there_are_such_graphs():
    assert set(NAMES) <= set(GRAPHS)


def test_outputs_are_the_engines_and_survive_a_restart(models, tmp_path):
    half = {name: (inputs(model, 40), Engine(model)) for name, model in models.items()}
    durable = {"state_dir": tmp_path, "durability": "checkpoint"}
    for part in (slice(0, 20), slice(20, 40)):
        with serving(models, **durable) as server, Client(server.endpoints[0]) as client:
            for name, (x, engine) in half.items():
                stream = client.stream(f"of {name}", model=name)
                given = x[part]
                y = [*map(stream.step, given[:5]), *stream.steps(given[5:])]
                np.testing.assert_array_equal(y, engine.steps("a", given))


def test_a_step_sent_again_is_answered_as_before(models):
    """With a window of one, what is answered again comes from the stream's row."""
    with serving(models) as server, Client(server.endpoints[0]) as client:
        for name, model in models.items():
            stream = client.stream(f"again {name}", model=name, window=1)
            x = inputs(model, 3)
            y = [stream.step(row) for row in x]
            np.testing.assert_array_equal(stream.step(x[2], seq=3), y[2])


def test_a_frame_comes_in_its_shape_and_other_shapes_are_refused(models):
    model = models["frame-to-frame"]
    x = inputs(model, 4)
    expected = Engine(model).steps("a", x)
    frames = x.reshape(4, 9, 3)
    np.testing.assert_array_equal(Engine(model).steps("a", frames), expected)
    np.testing.assert_array_equal(Engine(model).steps("a", {"frame": frames}), expected)
    with serving({"m": model}) as server, Client(server.endpoints[0]) as client:
        stream = client.stream("s")
        np.testing.assert_array_equal(stream.step(frames[0]), expected[0])
        np.testing.assert_array_equal(stream.step({"frame": frames[1]}), expected[1])
        np.testing.assert_array_equal(stream.steps(frames[2:]), expected[2:])
        rows = client.rows(["p", "q"])
        engine = Engine(model)
        together = engine.batch(engine.rows(["p", "q"]), x[:2])
        np.testing.assert_array_equal(client.batch(rows, frames[:2]), together)
        for wrong in (frames[0].T, frames[0][:8], frames[0, 0]):
            with pytest.raises(errors.WrongLength, match=r"frame \[9, 3\]"):
                stream.step(wrong)
        bad = frames[0].copy()
        bad[4, 1] = np.inf
        with pytest.raises(errors.BadValue, match="frame"):
            stream.step(bad)


def test_a_decoder_begins_with_its_encoders_state(rng):
    memory = TimeConvSpec(2, 3, name="kept")
    models = {
        "encoder": model_with_name(rng, "lstm", 6, "state", DenseSpec(1)),
        "decoder": model_with_name(rng, "lstm", 6, "state", memory),
        "wide": model_with_name(rng, "lstm", 7, "state"),
        "stranger": model_with_name(rng, "lstm", 6, "other"),
    }
    x = rng.normal(size=(9, 2)).astype(np.float32)
    reference = {name: ReferenceModel(model) for name, model in models.items()}
    state = reference["encoder"].initial_state(1)
    for row in x[:5]:
        _, state = reference["encoder"].step(state, row[None])
    begun = reference["decoder"].initial_state(1)
    begun = replace(begun, layers=(state.layers[0], *begun.layers[1:]))
    expected = []
    for row in x[5:]:
        y, begun = reference["decoder"].step(begun, row[None])
        expected.append(y[0])
    with serving(models) as server, Client(server.endpoints[0]) as client:
        encoder = client.stream("heard", model="encoder")
        encoder.steps(x[:5])
        record = encoder.export()
        decoder = client.stream("said", model="decoder", initial_state=record)
        np.testing.assert_allclose(decoder.steps(x[5:]), expected, atol=1e-6)
        for name, words in (("wide", "6 numbers in one model and 7"), ("stranger", "same name")):
            with pytest.raises(errors.WrongModel, match=words):
                client.stream(f"of {name}", model=name, initial_state=record)
        with pytest.raises(errors.UnknownModel):
            client.stream("of nobody", model="nobody", initial_state=record)
