"""Gradients by lag, beside those that PyTorch computed in float64 (recorded)."""

import numpy as np
import pytest

from streamrnn.model.model import Model
from streamrnn.model.spec import InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.training.memory.fading import (
    Fading,
    LayerFading,
    fading_lines,
    jacobian_by_lag,
    measure_fading,
)
from streamrnn.training.memory.rows import choose_rows, raw_inputs
from tests.support.models import random_parameters
from tests.training.memory.made import CASES, made

LAGS = (0, 1, 2, 5, 11)
# By case, layer and state: root mean square over 32 windows of the norms at these lags; torch
# 2.13, LSTMCell, GRUCell and RNNCell, `retain_grad` on every state. The loss is that of the last
# step (a sum of squares, or a cross-entropy); of the Jacobian, outputs are those of the softmax.
LOSS = {
    ("lstm", 0, "h"): (2.532948e-01, 1.663302e-01, 2.524341e-02, 1.673464e-02, 3.644877e-03),
    ("lstm", 0, "c"): (8.944340e-02, 3.855741e-02, 2.082548e-02, 1.658212e-02, 4.261921e-03),
    ("lstm", 1, "h"): (3.560776e00, 6.864447e-01, 8.314845e-02, 1.139647e-02, 4.559370e-03),
    ("lstm", 1, "c"): (1.763306e00, 3.401432e-01, 1.620771e-01, 6.299995e-02, 1.533594e-02),
    ("gru", 0, "h"): (4.794404e-01, 3.211597e-01, 2.107121e-01, 1.013852e-01, 2.579019e-02),
    ("gru", 1, "h"): (6.689350e-01, 1.881900e-01, 7.159958e-02, 7.874671e-03, 1.404329e-04),
    ("mixed", 0, "h"): (1.112987e-01, 5.611320e-02, 4.961822e-02, 3.117042e-02, 5.141112e-02),
    ("mixed", 1, "h"): (3.639152e-01, 1.290718e-01, 7.181101e-02, 1.696817e-02, 1.236644e-03),
    ("mixed", 1, "c"): (1.867101e-01, 1.186702e-01, 9.317148e-02, 2.331073e-02, 2.220439e-03),
}
JACOBIAN = {
    ("lstm", 0, "h"): (9.319969e-02, 4.789498e-02, 8.389122e-03, 5.542313e-03, 1.120793e-03),
    ("lstm", 0, "c"): (2.992537e-02, 1.394762e-02, 8.734604e-03, 5.398398e-03, 1.380822e-03),
    ("lstm", 1, "h"): (1.228268e00, 2.265290e-01, 2.557034e-02, 3.728911e-03, 1.622585e-03),
    ("lstm", 1, "c"): (5.926491e-01, 1.190143e-01, 5.774954e-02, 2.076882e-02, 5.182920e-03),
    ("gru", 0, "h"): (2.909340e-01, 1.933884e-01, 1.221899e-01, 6.073018e-02, 1.593134e-02),
    ("gru", 1, "h"): (4.051068e-01, 1.153363e-01, 4.340078e-02, 5.128644e-03, 1.011659e-04),
    ("mixed", 0, "h"): (5.166638e-02, 3.110508e-02, 2.795540e-02, 2.652710e-02, 2.516603e-02),
    ("mixed", 1, "h"): (1.727619e-01, 5.843738e-02, 3.145050e-02, 1.001128e-02, 8.408384e-04),
    ("mixed", 1, "c"): (8.676084e-02, 5.491583e-02, 4.122285e-02, 1.366900e-02, 1.287623e-03),
}


def compare(layers, name, recorded):
    got = {
        (name, each.layer, state): [values[lag] for lag in LAGS]
        for each in layers
        for state, values in (("h", each.by_h), ("c", each.by_c))
        if values
    }
    wanted = {key: values for key, values in recorded.items() if key[0] == name}
    assert set(got) == set(wanted)
    for key, values in wanted.items():
        np.testing.assert_allclose(got[key], values, rtol=2e-4, err_msg=str(key))


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_a_loss_are_those_of_pytorch(tmp_path, name):
    dataset, model = made(name, tmp_path)
    found = measure_fading(model, dataset, "train", 12)
    assert found is not None
    assert (found.num_steps, found.num_windows) == (12, 32)
    compare(found.layers, name, LOSS)


@pytest.mark.parametrize("name", CASES)
def test_the_jacobian_of_the_outputs_is_that_of_pytorch(tmp_path, name):
    dataset, model = made(name, tmp_path)
    rows = choose_rows(dataset, "train", 32, 11)
    x, _ = raw_inputs(dataset)
    windows = x[rows.rows[:, None] + np.arange(-11, 1)]
    compare(jacobian_by_lag(model, windows), name, JACOBIAN)


def test_a_head_that_is_the_same_to_a_softmax_has_the_same_jacobian(tmp_path):
    dataset, model = made("gru", tmp_path)
    other = dict(model.parameters)
    other["head.weight"] = other["head.weight"] - other["head.weight"].mean(axis=0)
    windows = raw_inputs(dataset)[0][:24].reshape(2, 12, -1)
    centred = jacobian_by_lag(Model(model.spec, other), windows)
    for a, b in zip(jacobian_by_lag(model, windows), centred, strict=True):
        np.testing.assert_allclose(a.by_h, b.by_h, rtol=1e-4)


def test_what_is_no_plain_stack_is_not_measured(tmp_path):
    dataset, _ = made("lstm", tmp_path)
    form = LayerSpec("lstm", 2, peepholes=True)
    spec = ModelSpec((InputSpec("x"),), (form,), (OutputSpec("a"), OutputSpec("b")))
    rng = np.random.default_rng(0)
    model = Model(spec, random_parameters(rng, spec))
    assert measure_fading(model, dataset, "train", 12) is None
    assert jacobian_by_lag(model, np.zeros((1, 3, 1), np.float32)) == ()


def lines_of(by_h, truncation_steps, by_c=()):
    layer = LayerFading(0, tuple(by_h), tuple(by_c))
    return fading_lines(Fading((layer,), len(by_h), 8, truncation_steps).to_dict())


def test_words_say_how_far_gradients_reach():
    faded = 0.5 ** np.arange(64)  # below a hundredth from lag 7 on
    assert lines_of(faded, 64)[0] == "gradients reach 7 of 64 steps"
    assert lines_of(faded, 64, 0.7 ** np.arange(64))[0] == "gradients reach 13 of 64 steps"
    cut = lines_of([1.0, 0.5, 0.4, 0.3], 4)[0]
    assert cut.startswith(
        "gradients reach 4 of 4 steps, where they are cut by the truncation and 30% of"
    )
    assert "--truncation-steps 8" in cut
    # Not cut: the windows are as long as there is past.
    assert lines_of([1.0, 0.5, 0.4, 0.3], 64)[0] == "gradients reach 4 of 4 steps"
    assert "|dL/dh| of layer 1 by lag (2 at 0): 0: 1  1: 0.5" in lines_of([2.0, 1.0], 8)[1]


def test_gradients_that_reach_no_layer_are_said_to():
    """As where the linear path alone is better: the head gives nothing of the network."""
    for by_c in ((), [0.0] * 4):
        assert lines_of([0.0] * 4, 4, by_c) == [
            "gradients reach no layer: the outputs do not depend on them"
        ]
