"""Models: validation, ownership of parameters, fingerprints."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from streamrnn.errors import ModelError
from streamrnn.model.model import Model
from streamrnn.model.parameters import canonical_spec, parameter_shapes
from streamrnn.model.spec import LayerSpec, ModelSpec, OutputSpec
from tests.support.models import EVERY_KIND_OF_INPUT, random_model


def test_parameters_have_pytorchs_names_and_shapes(rng):
    model = random_model(rng, [("lstm", 5), ("gru", 4), ("rnn_relu", 3)], EVERY_KIND_OF_INPUT, 2)
    assert parameter_shapes(model.spec) == {
        "embedding.place.weight": (7, 4),
        "weight_ih_l0": (20, 19),
        "weight_hh_l0": (20, 5),
        "bias_ih_l0": (20,),
        "bias_hh_l0": (20,),
        "weight_ih_l1": (12, 5),
        "weight_hh_l1": (12, 4),
        "bias_ih_l1": (12,),
        "bias_hh_l1": (12,),
        "weight_ih_l2": (3, 4),
        "weight_hh_l2": (3, 3),
        "bias_ih_l2": (3,),
        "bias_hh_l2": (3,),
        "head.weight": (2, 3),
        "head.bias": (2,),
    }
    assert list(model.parameters) == list(parameter_shapes(model.spec))
    assert "head.weight" not in parameter_shapes(random_model(rng, head=None).spec)


def test_a_model_owns_its_parameters(rng):
    model = random_model(rng)
    given = {name: np.asfortranarray(value) for name, value in model.parameters.items()}
    copy = Model(model.spec, given)
    given["weight_hh_l0"][0, 0] += 1
    assert copy.fingerprint == model.fingerprint
    for value in copy.parameters.values():
        assert value.flags.c_contiguous
        assert value.flags.owndata
        assert not value.flags.writeable
    assert not hasattr(copy.parameters, "__setitem__")


def _with(model, **changes):
    parameters = {name: value.copy() for name, value in model.parameters.items()}
    for name, change in changes.items():
        parameters[name] = change(parameters[name])
    return parameters


def _planted(index, value):
    def change(array):
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias_hh_l0": lambda v: v[:-1]}, r"bias_hh_l0 has shape \[95\].*asks for \[96\]"),
        ({"weight_ih_l0": lambda v: v.T}, r"weight_ih_l0 has shape \[3, 96\].*asks for \[96, 3\]"),
        ({"weight_hh_l0": lambda v: v.astype(np.float64)}, "weight_hh_l0 is float64.*float32"),
        ({"weight_hh_l0": lambda v: v.astype(">f4")}, "weight_hh_l0 is >f4.*float32"),
        ({"weight_hh_l0": lambda v: v.tolist()}, "weight_hh_l0 is list"),
        ({"weight_hh_l0": _planted((7, 3), np.nan)}, r"weight_hh_l0\[7, 3\] is nan \(1 of 2304"),
        ({"weight_hh_l0": _planted((7, 3), -np.inf)}, r"weight_hh_l0\[7, 3\] is -inf"),
        ({"weight_hh_l0": _planted(7, np.inf)}, r"\[7, 0\] is inf \(24 of 2304"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(rng, changes, message):
    model = random_model(rng)
    with pytest.raises(ModelError, match=message):
        Model(model.spec, _with(model, **changes))


def test_missing_and_unknown_parameters_are_refused(rng):
    model = random_model(rng)
    parameters = dict(model.parameters)
    with pytest.raises(ModelError, match="unknown parameter 'extra'"):
        Model(model.spec, parameters | {"extra": parameters["head.bias"]})
    del parameters["head.bias"], parameters["bias_ih_l0"]
    with pytest.raises(ModelError, match=r"bias_ih_l0 \[96\] is missing, and 1 more.*head.bias"):
        Model(model.spec, parameters)


def test_the_fingerprint_covers_description_and_parameters(rng):
    model = random_model(rng, outputs=2)
    spec = model.spec
    others = [Model(spec, _bumped(model, name)) for name in model.parameters]
    renamed = (OutputSpec("y0"), OutputSpec("y1", unit="ppm"))
    others += [
        Model(replace(spec, outputs=renamed), model.parameters),
        Model(replace(spec, warmup_steps=1), model.parameters),
        Model(replace(spec, training={"seed": 1}), model.parameters),
    ]
    fingerprints = {other.fingerprint for other in others} | {model.fingerprint}
    assert len(fingerprints) == len(others) + 1
    assert (
        Model(spec, dict(reversed(list(model.parameters.items())))).fingerprint == model.fingerprint
    )
    assert len(model.fingerprint) == 64


def _bumped(model, name):
    """Return the parameters with the last bit of one number flipped."""
    parameters = {key: value.copy() for key, value in model.parameters.items()}
    parameters[name].reshape(-1).view(np.uint32)[-1] ^= 1
    return parameters


def test_the_fingerprint_does_not_depend_on_fields_that_are_not_used(rng):
    # A field that a later version adds must not invalidate models, nor their streams' states.
    spec = random_model(rng, [("lstm", 2)], 1, 1).spec
    assert canonical_spec(spec) == (
        '{"head":{},"inputs":[{"name":"x0"}],"layers":[{"cell":"lstm","hidden_size":2}],'
        '"outputs":[{"name":"y0"}]}'
    )


def test_the_defaults_are_part_of_the_file_format():
    spec = ModelSpec.from_dict(
        {
            "inputs": [{"name": "a"}],
            "layers": [{"cell": "gru", "hidden_size": 2}],
            "outputs": [{"name": "b"}],
            "head": {},
        }
    )
    assert spec.to_dict() == {
        "inputs": (
            {
                "name": "a",
                "unit": "",
                "kind": "numeric",
                "categories": (),
                "num_categories": 0,
                "embedding_size": 0,
                "difference": False,
                "center": 0.0,
                "scale": 1.0,
                "missing": "error",
                "fill": 0.0,
                "shape": (),
                "origin": 0.0,
                "starts_known": False,
            },
        ),
        "layers": (
            {
                "cell": "gru",
                "hidden_size": 2,
                "reset_after": True,
                "projection_size": 0,
                "peepholes": False,
                "layer_norm": False,
                "norm_epsilon": 1e-05,
                "gate_activation": "sigmoid",
                "cell_activation": "tanh",
                "output_activation": "tanh",
                "first_state": False,
                "name": "",
                "reads": (),
            },
        ),
        "outputs": (
            {
                "name": "b",
                "unit": "",
                "center": 0.0,
                "scale": 1.0,
                "difference_of": None,
                "shape": (),
                "origin": 0.0,
            },
        ),
        "head": {"activation": "identity"},
        "warmup_steps": 0,
        "training": {},
        "mask_value": None,
    }, "a field may be added here; a default that changes would change every saved model"


def test_the_canonical_description_is_read_back_as_the_same(rng):
    spec = random_model(
        rng, [("gru", 3)], EVERY_KIND_OF_INPUT, training={"b": [1, {"a": 0.1}]}
    ).spec
    assert ModelSpec.from_dict(json.loads(canonical_spec(spec))) == spec


@pytest.mark.parametrize("training", [{"a": np.float32(1)}, {"a": float("nan")}, {"a": {1, 2}}])
def test_training_that_is_no_json_is_refused(rng, training):
    model = random_model(rng, training=training)
    with pytest.raises(ModelError, match="training may hold only"):
        model.fingerprint  # noqa: B018


def test_a_model_says_what_it_is(rng):
    model = random_model(rng, [("lstm", 5), ("gru", 4)], 3, 2)
    assert repr(model) == "<Model 3 inputs -> lstm 5 -> gru 4 -> 2 outputs, 342 parameters>"
    assert model.num_parameters == 4 * 5 * (3 + 5 + 2) + 3 * 4 * (5 + 4 + 2) + 2 * (4 + 1)


def test_layers_of_an_unknown_cell_are_refused():
    with pytest.raises(ModelError, match="unknown cell 'mgu'; known are rnn_tanh"):
        LayerSpec("mgu", 4)
