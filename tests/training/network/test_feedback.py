"""Networks of which a layer reads what a later one or the head gave at the step before."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pytest

from streamrnn import Engine, Model
from streamrnn.commands import inspect
from streamrnn.commands.predict import predict_file
from streamrnn.errors import TrainingError
from streamrnn.model.spec import CELLS, HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.reference.model import ReferenceModel
from streamrnn.training import TrainingConfig, train_to_file
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.fit.checkpoint import Checkpoint
from streamrnn.training.fit.loop import fit
from streamrnn.training.layer_list import parse_layers
from streamrnn.training.network.losses import LOSSES, activate, gradient_before
from streamrnn.training.network.network import Chunk, Network
from tests.support.tables import noisy_sine, write_csv
from tests.tolerances import KERNEL, REFERENCE_FLOAT64
from tests.training.network.gradients import (
    STEP,
    assert_gradient,
    assert_gradient_by_the_features,
    make_case,
)

GOLDEN = Path(__file__).parents[2] / "golden"
DESCRIBED = json.loads((GOLDEN / "jordan.json").read_text())
CASES = DESCRIBED["cases"]
INPUTS = (InputSpec("a"), InputSpec("b"))
STACKS = [
    *(((f"{cell}:4",), ("head",)) for cell in CELLS),
    *(((f"{cell}:4", "gru:3"), ("layer2",)) for cell in CELLS),
    (("lstm:4", "gru:3"), ("layer2", "head")),
    (("gru:3", "rnn_tanh:4"), ("head:layer2",)),
    (("gru:3", "lstm:4", "rnn_tanh:3", "gru:4"), ("layer3:layer2",)),
    (("gru:3", "rnn_tanh:4", "lstm:3", "gru:2"), ("layer2", "head:layer3")),
]


def golden_case(name):
    """Return a case's model, loss and arrays."""
    case = CASES[name]
    with np.load(GOLDEN / "jordan" / f"{name}.npz") as file:
        arrays = dict(file)
    spec = ModelSpec(
        inputs=INPUTS,
        layers=parse_layers(tuple(case["layers"]), tuple(case["feedback"])),
        outputs=tuple(OutputSpec(f"y{o}") for o in range(arrays["y"].shape[2])),
        head=HeadSpec(LOSSES[case["loss"]]),
    )
    names = [key.removeprefix("grad1.") for key in arrays if key.startswith("grad1.")]
    return Model(spec, {key: arrays[key] for key in names}), case["loss"], arrays


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_pytorchs(name):
    """Two windows of truncated backpropagation, the second from where the first has ended."""
    model, loss, arrays = golden_case(name)
    network = Network(model.spec, model.parameters, np.float64)
    x = arrays["x"].astype(np.float64)
    y, _ = network.outputs(Chunk(x, {}), network.initial_state(x.shape[1]))
    np.testing.assert_allclose(y, arrays["y"], rtol=0, atol=REFERENCE_FLOAT64)
    state, start = network.initial_state(x.shape[1]), 0
    for k, length in enumerate(DESCRIBED["windows"]):
        window = slice(start, start + length)
        value, state = network.loss(Chunk(x[window], {}), arrays["target"][window], state, loss)
        assert value == pytest.approx(arrays["loss"][k], rel=1e-12)
        for key, gradient in network.gradients.items():
            expected = arrays[f"grad{k + 1}.{key}"]
            assert np.abs(expected).max() > 1e-4
            np.testing.assert_allclose(gradient, expected, rtol=0, atol=REFERENCE_FLOAT64)
        start += length


@pytest.mark.parametrize("name", CASES)
def test_what_is_served_is_pytorchs(name):
    model, _, arrays = golden_case(name)
    x = arrays["x"].swapaxes(0, 1)
    expected = arrays["y"].swapaxes(0, 1)
    np.testing.assert_allclose(ReferenceModel(model).steps(x), expected, atol=REFERENCE_FLOAT64)
    engine = Engine(model)
    for b, of_stream in enumerate(x):
        np.testing.assert_allclose(engine.steps(f"s{b}", of_stream), expected[b], atol=KERNEL)


@pytest.mark.parametrize(("layers", "feedback"), STACKS, ids=str)
def test_gradient_of_every_cell(layers, feedback):
    rng = np.random.default_rng(1)
    stack = parse_layers(layers, feedback)
    assert_gradient("mse", make_case(rng, stack, "mse", "identity", INPUTS))


@pytest.mark.parametrize(
    ("loss", "activation"), [*((each, LOSSES[each]) for each in LOSSES), ("mse", "tanh")]
)
def test_gradient_through_every_head(loss, activation):
    rng = np.random.default_rng(2)
    stack = parse_layers(("gru:4", "rnn_tanh:3"), ("head",))
    assert_gradient(loss, make_case(rng, stack, loss, activation, INPUTS))


def test_gradient_without_a_head():
    rng = np.random.default_rng(3)
    stack = parse_layers(("gru:4", "rnn_tanh:3"), ("layer2",))
    assert_gradient("mse", make_case(rng, stack, "mse", None, INPUTS))


@pytest.mark.parametrize(
    "layers",
    [
        (LayerSpec("gru", 3, name="a"), LayerSpec("lstm", 4, reads=("a[t-1]", "input"))),
        (LayerSpec("gru", 3, name="a"), LayerSpec("lstm", 4, reads=("a[t-1]",))),
        (LayerSpec("rnn_tanh", 3, name="a", reads=("a[t-1]", "input")), LayerSpec("gru", 4)),
        (
            LayerSpec("gru", 3, name="a"),
            LayerSpec("lstm", 4, name="b", reads=("input", "a", "head[t-1]", "a[t-1]")),
            LayerSpec("rnn_tanh", 3, reads=("a", "b", "a")),
        ),
    ],
)
def test_gradient_of_layers_that_read_others(layers):
    rng = np.random.default_rng(4)
    tokens = InputSpec("c", kind="categorical", num_categories=3, embedding_size=2)
    assert_gradient("mse", make_case(rng, layers, "mse", "identity", (INPUTS[0], tokens)))


def test_gradient_by_the_features():
    stack = parse_layers(("lstm:4", "gru:3"), ("head", "layer2"))
    case = make_case(np.random.default_rng(5), stack, "cross_entropy", "softmax", INPUTS)
    assert_gradient_by_the_features("cross_entropy", case)


@pytest.mark.parametrize("activation", ["identity", "tanh", "sigmoid", "softmax"])
def test_gradient_of_what_is_fed_back(activation):
    rng = np.random.default_rng(6)
    z, grad_y = rng.normal(size=(2, 4, 3))
    analytic = gradient_before(activate(z, activation), activation, grad_y)
    for o in range(3):
        moved = STEP * np.eye(3)[o]
        change = activate(z + moved, activation) - activate(z - moved, activation)
        expected = (change * grad_y).sum(axis=1) / (2 * STEP)
        np.testing.assert_allclose(analytic[:, o], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("layers", "feedback"), STACKS, ids=str)
def test_chunks_carry_what_is_fed_back(layers, feedback):
    rng = np.random.default_rng(7)
    stack = parse_layers(layers, feedback)
    network, chunk, _, state = make_case(rng, stack, "mse", "identity", INPUTS)
    whole, end = network.outputs(chunk, state)
    parts, end_of_parts = network.outputs(chunk, state, max_steps=2)
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-13)
    for one, other in zip(end, end_of_parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)


def test_only_what_lies_in_a_loop_goes_step_by_step():
    def groups(layers, feedback):
        stack = parse_layers(layers, feedback)
        network = make_case(np.random.default_rng(8), stack, "mse", "identity", INPUTS)[0]
        return [(list(group.nodes), group.is_stepwise) for group in network.groups]

    four = ("gru:2",) * 4
    assert groups(four, ()) == [([k], False) for k in range(5)]
    loop = [([0], False), ([1, 2], True), ([3], False), ([4], False)]
    assert groups(four, ("layer3:layer2",)) == loop
    assert groups(four, ("layer2", "head:layer3")) == [([0, 1], True), ([2, 3, 4], True)]
    assert groups(four, ("layer3", "layer4:layer2")) == [([0, 1, 2, 3], True), ([4], False)]


def test_layers_are_named_where_they_are_read():
    assert parse_layers(("gru:3",), ("head",)) == (
        LayerSpec("gru", 3, reads=("input", "head[t-1]")),
    )
    assert parse_layers(("gru:3", "lstm:4", "gru:5"), ("layer3:layer2", "head:layer2")) == (
        LayerSpec("gru", 3, name="layer1"),
        LayerSpec("lstm", 4, reads=("layer1", "layer3[t-1]", "head[t-1]")),
        LayerSpec("gru", 5, name="layer3"),
    )


@pytest.mark.parametrize(
    ("feedback", "words"),
    [
        ("haed", "unknown 'haed'.*did you mean 'head'.*layer1, layer2, head"),
        ("layer3", "unknown 'layer3'"),
        ("head:layer3", "unknown 'layer3'.*write SOURCE or SOURCE:LAYER with layer1, layer2,"),
        ("head:head", "unknown 'head'"),
        ("", "unknown ''"),
        ("layer1", "from a later layer or the head to an earlier one"),
        ("layer1:layer2", "from a later layer or the head to an earlier one"),
        ("head, head", "stands there twice"),
    ],
)
def test_feedback_that_cannot_be_is_refused(feedback, words):
    with pytest.raises(TrainingError, match=words):
        parse_layers(("gru:3", "gru:3"), tuple(feedback.split(",")))


def latch(num_rows):
    """Return x of -1, 0 and 1, and whether the last one that was not 0 is 1."""
    rng = np.random.default_rng(4)
    x = rng.choice([-1, 0, 0, 0, 0, 1], num_rows)
    x[0] = 1
    last = np.maximum.accumulate(np.where(x != 0, np.arange(num_rows), 0))
    return x, (x[last] > 0).astype(int)


def test_a_trained_jordan_network_streams_what_it_predicts(tmp_path):
    """Its state is what it is fed back: without that it forgets."""
    x, on = latch(700)
    path = write_csv(tmp_path, x=x, on=on)
    config = TrainingConfig(
        path=path,
        predict=("on",),
        horizon=(0,),
        layers=("rnn_tanh:2",),
        feedback=("head",),
        truncation_steps=16,
        learning_rate=0.02,
        epochs=60,
    )
    result = train_to_file(config, tmp_path / "jordan.safetensors")
    assert result.report["errors"]["test"]["on"]["accuracy"] > 0.97
    model = Model.load(tmp_path / "jordan.safetensors")
    assert model.spec.layers[0].reads == ("input", "head[t-1]")

    predict_file(model, path, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        predicted = np.array([row[-1] for row in list(csv.reader(file))[1:]], np.float32)
    engine = Engine(model)
    raw = x[:, None].astype(np.float32)
    streamed = np.concatenate([engine.step({"a": row})["a"] for row in raw])
    np.testing.assert_array_equal(streamed, predicted)

    deaf = {name: value.copy() for name, value in model.parameters.items()}
    deaf["weight_ih_l0"][:, 1] = 0.0
    forgetful = Engine(Model(model.spec, deaf)).steps("a", raw)[:, 0]
    assert ((predicted > 0.5) == on).mean() > 0.97
    assert ((forgetful > 0.5) == on).mean() < 0.9


def test_inspect_shows_what_is_read_at_the_next_step(tmp_path, capsys):
    path = write_csv(tmp_path, y=noisy_sine(200))
    layers, feedback = ("lstm:4", "gru:5"), ("head", "layer2")
    config = TrainingConfig(path=path, predict=("y",), layers=layers, feedback=feedback, epochs=1)
    train_to_file(config, tmp_path / "m")
    parser = argparse.ArgumentParser()
    inspect.configure(parser)
    assert inspect.run(parser.parse_args([str(tmp_path / "m")])) == 0
    shown = capsys.readouterr().out
    assert "lstm  7 -> 4  (of input, head[t-1], layer2[t-1])" in shown
    assert "layer2: gru  4 -> 5" in shown
    assert "read again at the next step: head, layer2" in shown
    assert f"state        {4 * (4 + 4 + 5 + 5 + 1)} bytes" in shown


def test_a_training_that_was_stopped_goes_on_to_the_bit(tmp_path):
    path = write_csv(tmp_path, y=noisy_sine(400))
    config = TrainingConfig(
        path=path,
        predict=("y",),
        layers=("gru:5",),
        feedback=("head",),
        epochs=4,
        batch_size=3,
        truncation_steps=20,
    )
    dataset = make_dataset(config, read_table(path))
    expected = fit(dataset).network.flat.copy()
    updates = iter([False] * 9 + [True] * 1000)
    kept = tmp_path / "kept"
    stopped = fit(dataset, None, lambda: next(updates), Checkpoint(kept, {}, resume=False))
    assert stopped.was_stopped
    found = fit(dataset, keeper=Checkpoint(kept, {}, resume=True)).network.flat
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("layers", "feedback", "predict"),
    [
        (("gru:5",), ("head",), ("y",)),
        (("lstm:4", "gru:5"), ("layer2", "head:layer2"), ("y", "w")),
        (("gru:5",), ("head",), ("colour",)),
    ],
)
def test_the_engine_reproduces_outputs_in_the_users_units(tmp_path, layers, feedback, predict):
    """What is fed back is neither scaled nor shifted; `train_to_file` checks it."""
    y = noisy_sine(200)
    path = write_csv(tmp_path, y=300 * y, w=0.01 * y + 7, colour=np.where(y > 0, "red", "blue"))
    config = TrainingConfig(
        path=path, predict=predict, layers=layers, feedback=feedback, epochs=3, difference=("w",)
    )
    result = train_to_file(config, tmp_path / "a.safetensors")
    assert (result.model.spec.outputs[0].scale > 100) == (predict[0] == "y")
    again = TrainingConfig.read(tmp_path / "a.toml")
    assert again.feedback == feedback
    train_to_file(again, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
