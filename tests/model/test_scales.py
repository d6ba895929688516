"""Scales are folded into weights: those that would overflow there are refused at load."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn import Engine, Model
from streamrnn.errors import ModelError, ModelFileError, SpecError
from streamrnn.model.file import write_model_file
from streamrnn.model.spec import InputSpec, LayerSpec, OutputSpec
from tests.support.models import random_model

FORMS = [
    LayerSpec("gru", 4),
    LayerSpec("lstm", 4),
    LayerSpec("rnn_tanh", 4),
    LayerSpec("lstm", 4, projection_size=3, peepholes=True),
    LayerSpec("gru", 4, layer_norm=True),
]
LEAST = float(np.finfo(np.float32).tiny)
EXTREMES = st.one_of(
    st.sampled_from([1.0, LEAST, 1e-30, 1e30, float(np.finfo(np.float32).max)]),
    st.floats(-126, 127, allow_nan=False).map(lambda power: float(2.0**power)),
)


def scaled(rng, layer, input_scale=1.0, output_scale=1.0, factors=None, **kind):
    """Return a model's description and parameters, which need not be good ones."""
    inputs = [InputSpec("a", scale=input_scale, **kind), InputSpec("b")]
    outputs = [OutputSpec("y", scale=output_scale), OutputSpec("z")]
    good = random_model(rng, [layer], inputs=[InputSpec("a", **kind), InputSpec("b")])
    spec = dataclasses.replace(good.spec, inputs=tuple(inputs), outputs=tuple(outputs))
    factors = factors or {}
    return spec, {
        name: (value * np.float32(factors.get(name, 1.0))).astype(np.float32)
        for name, value in good.parameters.items()
    }


@pytest.mark.parametrize("kind", [{}, {"missing": "mask"}, {"difference": True}])
@pytest.mark.parametrize("layer", FORMS, ids=lambda layer: layer.describe())
def test_an_input_scale_that_makes_a_weight_overflow_is_refused(rng, layer, kind):
    spec, parameters = scaled(rng, layer, 1e-37, factors={"weight_ih_l0": 1e2}, **kind)
    with pytest.raises(ModelError, match=r"weight_ih_l0\[.*with its scale folded in.*NaN"):
        Model(spec, parameters)


@pytest.mark.parametrize("name", ["head.weight", "head.bias"])
def test_an_output_scale_that_makes_the_head_overflow_is_refused(rng, name):
    spec, parameters = scaled(rng, FORMS[0], output_scale=1e30, factors={name: 1e9})
    with pytest.raises(ModelError, match=re.escape(name) + r"\[0.*with its scale folded in"):
        Model(spec, parameters)


@pytest.mark.parametrize("side", ["input_scale", "output_scale"])
def test_a_scale_below_the_normal_numbers_is_refused(rng, side):
    with pytest.raises(SpecError, match=r"at least 1\.18e-38"):
        scaled(rng, FORMS[0], **{side: 1e-45})


def test_a_fill_that_its_center_pushes_out_of_float32_is_refused():
    with pytest.raises(SpecError, match="fill - center"):
        InputSpec("a", missing="mean", fill=3e38, center=-3e38)


def test_a_weight_file_with_such_a_scale_is_refused_by_its_name(tmp_path, rng):
    spec, parameters = scaled(rng, FORMS[0], 1e-37, factors={"weight_ih_l0": 1e2})
    path = tmp_path / "m.safetensors"
    write_model_file(path, spec, parameters)
    with pytest.raises(ModelFileError, match=r"m\.safetensors: parameter weight_ih_l0"):
        Model.load(path)


def test_int8_weights_so_small_that_a_bias_over_their_scale_overflows_answer_numbers(rng):
    small = dict.fromkeys(("weight_ih_l0", "weight_hh_l0", "head.weight"), 1e-37)
    engine = Engine(Model(*scaled(rng, FORMS[0], factors=small)), precision="int8")
    rows = engine.rows([0])
    for _ in range(2):
        y = engine.batch(rows, np.ones((1, 2), np.float32))
    np.testing.assert_allclose(y[0], engine.model.parameters["head.bias"], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FORMS),
    st.sampled_from(["float32", "bfloat16", "int8"]),
    EXTREMES,
    EXTREMES,
    st.dictionaries(
        st.sampled_from(["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "head.weight", "head.bias"]),
        EXTREMES,
    ),
)
def test_a_model_that_is_accepted_answers_numbers(layer, precision, x_scale, y_scale, factors):
    """One scale around the centre, which is what a scale means."""
    with np.errstate(over="ignore"):
        spec, parameters = scaled(np.random.default_rng(1), layer, x_scale, y_scale, factors)
    try:
        model = Model(spec, parameters)
    except ModelError:
        return
    engine = Engine(model, max_streams=1, precision=precision)
    rows = engine.rows([0])
    for x in (0.0, 1.0, -1.0):
        y = engine.batch(rows, np.array([[x * x_scale, x]], np.float32))
        assert not np.isnan(y).any()
