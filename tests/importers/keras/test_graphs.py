"""Functional graphs of Keras, with what the float64 functions give."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelFileError
from streamrnn.importers.source import import_file
from streamrnn.reference.activations import ACTIVATIONS, sigmoid
from tests.importers.files.keras import (
    dense,
    functional,
    layer,
    legacy,
    recurrent,
    sequential,
)
from tests.importers.keras.conftest import RNG, WIDE, X, answers, close, product, shaped
from tests.tolerances import REFERENCE_FLOAT64

# --- graphs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Add", "Subtract", "Multiply", "Average", "Concatenate"])
def test_several_results_are_joined(importing, kind):
    a, b = dense(3, 4, activation="tanh"), dense(3, 4, activation="relu")
    layers = [shaped(), a, b, layer(kind)]
    left, right = np.tanh(product(a, WIDE)), np.maximum(product(b, WIDE), 0)
    wanted = {
        "Add": left + right,
        "Subtract": left - right,
        "Multiply": left * right,
        "Average": (left + right) / 2,
        "Concatenate": np.concatenate([left, right], axis=1),
    }[kind]
    found = importing(layers, config=functional(layers, [[], [0], [0], [1, 2]]))
    assert close(answers(found), wanted, REFERENCE_FLOAT64)


def test_residuals_and_input_skips_are_followed(importing):
    cell, a, b = recurrent("LSTM"), dense(7, 4, activation="tanh"), dense(4, 2)
    layers = [shaped(), cell, layer("Concatenate", axis=-1), a, layer("Add"), b]
    config = functional(layers, [[], [0], [0, 1], [2], [3, 1], [4]])
    hidden = answers(importing([cell]))
    score = np.tanh(product(a, np.concatenate([WIDE, hidden], axis=1)))
    assert close(answers(importing(layers, config=config)), product(b, score + hidden))


def test_a_gate_of_one_number_is_for_every_channel(importing):
    cell, gate = recurrent("GRU"), dense(3, 1, activation="sigmoid")
    layers = [shaped(), cell, gate, layer("Multiply")]
    found = importing(layers, config=functional(layers, [[], [0], [0], [1, 2]]))
    wanted = answers(importing([cell])) * sigmoid(product(gate, WIDE))
    assert close(answers(found), wanted, REFERENCE_FLOAT64)


def test_several_outputs_are_side_by_side(importing):
    cell, a, b = recurrent("GRU"), dense(4, 2), dense(4, 1, activation="sigmoid")
    layers = [shaped(), cell, a, b]
    found = importing(layers, config=functional(layers, [[], [0], [1], [1]], outputs=2))
    hidden = answers(importing([cell]))
    wanted = np.concatenate([product(a, hidden), sigmoid(product(b, hidden))], axis=1)
    assert close(answers(found), wanted, REFERENCE_FLOAT64)
    assert "the outputs are one, side by side: dense_42 (2), dense_43 (1)" in found.notes


def test_several_inputs_are_side_by_side(importing):
    a, b = dense(3, 4, activation="tanh"), dense(2, 4)
    layers = [shaped(), shaped(2), a, b, layer("Add")]
    config = functional(layers, [[], [], [0], [1], [2, 3]])
    config["config"]["input_layers"] = [["x_41", 0, 0], ["x_40", 0, 0]]
    found = importing(layers, config=config)
    y = RNG.standard_normal((12, 2)).astype(np.float32)
    got = answers(found, np.concatenate([y, X], axis=1))
    assert close(got, np.tanh(product(a, WIDE)) + product(b, y.astype(np.float64)))
    assert "the inputs are one, side by side: x_41 (2), x_40 (3)" in found.notes


def test_a_layer_used_twice_has_a_state_for_each_use(importing):
    a, cell = dense(3, 3, activation="tanh"), recurrent("LSTM")
    layers = [shaped(), a, cell, layer("Subtract")]
    config = functional(layers, [[], [0], [0], [2, 2]])
    made = config["config"]["layers"]
    made[2]["inbound_nodes"] *= 2
    made[2]["inbound_nodes"] = [made[1]["inbound_nodes"][0], _reading("dense_41")]
    made[3]["inbound_nodes"] = [_reading(("lstm_42", 0), ("lstm_42", 1))]
    hidden = np.tanh(product(a, WIDE)).astype(np.float32)
    alone = importing([cell])
    wanted = answers(alone) - answers(alone, hidden)
    assert close(answers(importing(layers, config=config)), wanted, 1e-6)


def _reading(*references):
    pairs = [(ref, 0) if isinstance(ref, str) else ref for ref in references]
    tensors = [
        {"class_name": "__keras_tensor__", "config": {"keras_history": [name, use, 0]}}
        for name, use in pairs
    ]
    return {"args": [tensors] if len(tensors) > 1 else tensors, "kwargs": {"mask": None}}


def operation(importing, kind, given, **options):
    """Import a GRU and an operation on what it gives; return what both give."""
    cell = recurrent("GRU")
    layers = [shaped(), cell, layer(kind, **options)]
    config = functional(layers, [[], [0], [1]])
    entry = config["config"]["layers"][2]
    entry |= {"module": "keras.src.ops.numpy", "registered_name": kind}
    (tensor,) = entry["inbound_nodes"][0]["args"]
    entry["inbound_nodes"][0]["args"] = [tensor if item is None else item for item in given]
    return answers(importing([cell])), answers(importing(layers, config=config))


@pytest.mark.parametrize(
    ("kind", "given", "function"),
    [
        ("Add", [None, 2.0], lambda h: h + 2),
        ("Multiply", [0.5, None], lambda h: h / 2),
        ("Subtract", [1, None], lambda h: 1 - h),
        ("Subtract", [None, 1], lambda h: h - 1),
        ("TrueDivide", [None, 4], lambda h: h / 4),
        ("Negative", [None], lambda h: -h),
        ("Relu", [None], lambda h: np.maximum(h, 0)),
        ("Gelu", [None], ACTIVATIONS["gelu_tanh"]),
        ("Multiply", [None, None], lambda h: h * h),
    ],
)
def test_operations_on_values_are_followed(importing, kind, given, function):
    hidden, got = operation(importing, kind, given)
    assert close(got, function(hidden), REFERENCE_FLOAT64)


@pytest.mark.parametrize(
    ("kind", "options", "function"),
    [
        ("Celu", {"alpha": 0.25}, lambda h: np.where(h > 0, h, 0.25 * np.expm1(h / 0.25))),
        ("Celu", {}, lambda h: np.where(h > 0, h, np.expm1(h))),
        ("Elu", {"alpha": 0.25}, lambda h: np.where(h > 0, h, 0.25 * np.expm1(h))),
        ("Squareplus", {"b": 1}, lambda h: (h + np.sqrt(h * h + 1)) / 2),
        ("Squareplus", {}, lambda h: (h + np.sqrt(h * h + 4)) / 2),
        ("Clip", {"x_min": None, "x_max": 0.125}, lambda h: np.minimum(h, 0.125)),
        ("Clip", {"x_min": -0.125, "x_max": None}, lambda h: np.maximum(h, -0.125)),
    ],
)
def test_the_numbers_of_an_operation_are_used(importing, kind, options, function):
    hidden, got = operation(importing, kind, [None], **options)
    assert hidden.min() < -0.125
    assert hidden.max() > 0.125
    assert close(got, function(hidden), 1e-7)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kwargs": {"initial_state": [["dense_41", 0, 0]]}}, "takes initial_state from another"),
        ({"args": [[["x_40", 0, 0], ["dense_41", 0, 0]]]}, "a first state that the network comp"),
        ({"args": [["dense_41", 0, 1]]}, "reads the state of 'dense_41'"),
    ],
)
def test_states_that_go_between_layers_are_refused(importing, change, reason):
    layers = [shaped(), dense(3, 3), recurrent("LSTM")]
    config = functional(layers, [[], [0], [0]])
    config["config"]["layers"][2]["inbound_nodes"][0] |= change
    with pytest.raises(ModelFileError, match=reason):
        importing(layers, config=config)


def test_a_state_that_nobody_reads_is_no_obstacle(importing):
    made = recurrent("LSTM", return_state=True)
    plain = answers(importing([(made[0], made[1] | {"return_state": False}, made[2])]))
    assert np.array_equal(answers(importing([made])), plain)


@pytest.mark.parametrize("name", ["input", "head", "a[t-1]", "x/y"])
def test_any_name_of_a_layer_will_do(importing, name):
    a, cell = dense(3, 3, activation="tanh"), recurrent("LSTM")
    layers = [shaped(), ("Dense", a[1] | {"name": name}, a[2]), cell, layer("Concatenate")]
    config = functional(layers, [[], [0], [1], [1, 2]])
    hidden = np.tanh(product(a, WIDE))
    wanted = [hidden, answers(importing([a, cell]))]
    assert close(answers(importing(layers, config=config)), np.concatenate(wanted, axis=1))


def test_a_functional_model_of_keras_2_is_followed(tmp_path):
    import json

    import h5py

    a, b = dense(3, 4, activation="tanh"), dense(3, 4)
    layers = [layer("InputLayer", batch_input_shape=[None, None, 3]), a, b, layer("Add")]
    path = legacy(tmp_path / "m", layers)
    config = sequential(layers)
    made = config["config"]["layers"]
    names = [entry["config"]["name"] for entry in made]
    links: list[list[int]] = [[], [0], [0], [1, 2]]
    for entry, name, read in zip(made, names, links, strict=True):
        entry["name"] = name
        entry["inbound_nodes"] = [[[names[k], 0, 0, {}] for k in read]] if read else []
    config["class_name"] = "Functional"
    config["config"]["output_layers"] = [[names[3], 0, 0]]
    with h5py.File(path, "r+") as root:
        root.attrs["model_config"] = json.dumps(config)
    wanted = np.tanh(product(a, WIDE)) + product(b, WIDE)
    assert close(answers(import_file(path)), wanted, REFERENCE_FLOAT64)
