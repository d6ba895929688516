"""The cells' variants: description, and the reference against other frameworks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from streamrnn.commands.inspect import state_bytes
from streamrnn.errors import SpecError, TrainingError
from streamrnn.model.model import Model
from streamrnn.model.parameters import canonical_spec, parameter_shapes
from streamrnn.model.spec import GATE_ACTIVATIONS, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.reference.activations import GATE_FUNCTIONS
from streamrnn.reference.model import ReferenceModel
from streamrnn.reference.norm import normalised
from streamrnn.training.network.network import Network
from streamrnn_server.cli import main
from tests.support.forms import FORMS, form_of
from tests.support.models import random_inputs, random_model
from tests.tolerances import REFERENCE_FLOAT32, REFERENCE_FLOAT64

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "forms.json").read_text())["cases"]


def spec_of(layer, num_inputs=4):
    return ModelSpec(
        inputs=tuple(InputSpec(f"x{i}") for i in range(num_inputs)),
        layers=(layer,),
        outputs=tuple(OutputSpec(f"y{o}") for o in range(layer.output_size)),
    )


@pytest.mark.parametrize("case", CASES)
def test_the_reference_agrees_with_the_framework(case):
    spec = spec_of(LayerSpec(**CASES[case]["layer"]))
    with np.load(GOLDEN / "forms" / f"{case}.npz") as golden:
        names = set(golden.files) - {"x", "y"}
        y = ReferenceModel(Model(spec, {f"{n}_l0": golden[n] for n in names})).steps(golden["x"])
        exact = golden["y"].dtype == np.float64
        assert np.abs(y - golden["y"]).max() <= (REFERENCE_FLOAT64 if exact else REFERENCE_FLOAT32)
        assert y.std() > 0.1, "outputs that are all alike would prove nothing"


def test_every_form_has_a_golden_case():
    layers = [LayerSpec(**case["layer"]) for case in CASES.values()]
    for cell in ("gru", "lstm"):
        of_cell = [layer for layer in layers if layer.cell == cell]
        assert {layer.gate_activation for layer in of_cell} == set(GATE_ACTIVATIONS)
        assert any(layer.layer_norm for layer in of_cell)
    assert any(not layer.reset_after for layer in layers)
    assert any(layer.peepholes for layer in layers)
    assert any(layer.projection_size for layer in layers)
    assert not any(layer.is_plain for layer in layers)


def test_hard_sigmoids_are_the_published_lines():
    x = np.array([-4.0, -3.0, -2.5, -1.0, 0.0, 1.0, 2.5, 3.0, 4.0, np.nan])
    fifth, sixth = (GATE_FUNCTIONS[name](x).tolist() for name in GATE_ACTIVATIONS[1:])
    assert fifth[:-1] == pytest.approx([0, 0, 0, 0.3, 0.5, 0.7, 1, 1, 1], abs=1e-15)
    assert sixth[:-1] == pytest.approx([0, 0, 1 / 12, 1 / 3, 0.5, 2 / 3, 11 / 12, 1, 1], abs=1e-15)
    assert np.isnan([fifth[-1], sixth[-1]]).all()


def test_normalised_by_hand():
    x = np.array([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]])
    expected = np.array([-2, -1, 0, 3]) / np.sqrt(3.5 + 0.25)
    assert normalised(x, 0.25)[0] == pytest.approx(expected, abs=1e-15)
    assert normalised(x, 0.25)[1].tolist() == [0, 0, 0, 0]


def test_peepholes_of_zero_are_none_and_a_projection_by_one_is_none(rng):
    plain = random_model(rng, [("lstm", 5)], head=None)
    x = random_inputs(rng, plain.spec, 2, 20)
    expected = ReferenceModel(plain).steps(x)
    p = dict(plain.parameters)
    zeros = {f"weight_c{gate}_l0": np.zeros(5, np.float32) for gate in "ifo"}
    one = {"weight_hr_l0": np.eye(5, dtype=np.float32)}
    for form, more in (({"peepholes": True}, zeros), ({"projection_size": 5}, one)):
        model = Model(spec_of(LayerSpec("lstm", 5, **form), 3), p | more)
        assert np.abs(ReferenceModel(model).steps(x) - expected).max() <= REFERENCE_FLOAT64


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"cell": "lstm", "reset_after": False}, "a lstm layer has no reset_after; it is for gru"),
        ({"cell": "gru", "projection_size": 2}, "has no projection_size; it is for lstm"),
        ({"cell": "gru", "peepholes": True}, "has no peepholes; it is for lstm"),
        ({"cell": "rnn_tanh", "layer_norm": True}, "no layer_norm; it is for gru and lstm"),
        (
            {"cell": "rnn_relu", "gate_activation": "hard_sigmoid_fifth"},
            "no gate_activation; it is for gru and lstm",
        ),
        ({"cell": "gru", "gate_activation": "hard_sigmoid"}, "known are sigmoid, hard_sigmoid_fif"),
        ({"cell": "lstm", "peepholes": 1}, "peepholes is 1; it is true or false"),
        ({"cell": "lstm", "projection_size": -1}, "projection_size of a lstm layer is -1"),
        ({"cell": "lstm", "projection_size": 2.5}, "projection_size of a lstm layer is 2.5"),
        ({"cell": "lstm", "layer_norm": True, "norm_epsilon": 0.0}, "norm_epsilon is 0.0"),
        ({"cell": "lstm", "layer_norm": True, "norm_epsilon": 2.0}, "from 1e-12 to 1"),
        ({"cell": "lstm", "norm_epsilon": 1e-3}, "norm_epsilon needs layer_norm"),
        ({"cell": "lstm", "layer_norm": True, "peepholes": True}, "published nowhere"),
        ({"cell": "gru", "layer_norm": True, "reset_after": False}, "leave reset_after at true"),
    ],
)
def test_an_invalid_cell_variant_is_refused(form, message):
    with pytest.raises(SpecError, match=message):
        LayerSpec(hidden_size=4, **form)


def test_a_form_has_the_parameters_that_its_equations_name():
    norm = LayerSpec("lstm", 5, layer_norm=True, projection_size=2)
    spec = ModelSpec(
        inputs=(InputSpec("a"), InputSpec("b"), InputSpec("c")),
        layers=(norm, LayerSpec("gru", 4, layer_norm=True), LayerSpec("lstm", 3, peepholes=True)),
        outputs=tuple(OutputSpec(f"y{o}") for o in range(3)),
    )
    assert parameter_shapes(spec) == {
        "weight_ih_l0": (20, 3),
        "weight_hh_l0": (20, 2),
        "bias_ih_l0": (20,),
        "bias_hh_l0": (20,),
        "weight_hr_l0": (2, 5),
        "norm_weight_ih_l0": (20,),
        "norm_weight_hh_l0": (20,),
        "norm_weight_c_l0": (5,),
        "norm_bias_c_l0": (5,),
        "weight_ih_l1": (12, 2),
        "weight_hh_l1": (12, 4),
        "bias_ih_l1": (12,),
        "bias_hh_l1": (12,),
        "norm_weight_ih_l1": (12,),
        "norm_weight_hh_l1": (12,),
        "weight_ih_l2": (12, 4),
        "weight_hh_l2": (12, 3),
        "bias_ih_l2": (12,),
        "bias_hh_l2": (12,),
        "weight_ci_l2": (3,),
        "weight_cf_l2": (3,),
        "weight_co_l2": (3,),
    }
    assert state_bytes(spec) == 4 * (2 + 5 + 4 + 3 + 3)


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_saved_and_loaded(name, rng, tmp_path, capsys):
    layer = form_of(name, 6)
    model = random_model(rng, [layer, ("gru", 3)], 2, 1)
    path = tmp_path / "model.safetensors"
    model.save(path)
    assert Model.load(path).spec == model.spec
    assert Model.load(path).fingerprint == model.fingerprint
    assert main(["inspect", str(path)]) == 0
    form = layer.describe().removeprefix(layer.cell)
    assert form.startswith(" with ")
    assert f"  {layer.cell}  2 -> 6{form}\n  gru  {layer.output_size} -> 3\n" in (
        capsys.readouterr().out
    )


def test_a_layer_says_what_is_not_pytorchs_default():
    assert LayerSpec("gru", 3).describe() == "gru"
    assert LayerSpec("gru", 3, reset_after=False).describe() == "gru with reset before the product"
    layer = LayerSpec("lstm", 4, projection_size=2, gate_activation="hard_sigmoid_fifth")
    assert layer.describe() == "lstm with projection to 2 and hard_sigmoid_fifth gates"
    assert LayerSpec("lstm", 4, peepholes=True).describe() == "lstm with peepholes"
    assert LayerSpec("gru", 4, layer_norm=True).describe() == (
        "gru with layer norm (epsilon 1e-05)"
    )


def test_only_what_is_used_enters_the_fingerprint():
    plain = '{"cell":"lstm","hidden_size":2}'
    projected = '{"cell":"lstm","hidden_size":2,"projection_size":2}'
    texts = [canonical_spec(spec_of(LayerSpec("lstm", 2, projection_size=size))) for size in (0, 2)]
    assert plain in texts[0]
    assert texts[1] == texts[0].replace(plain, projected)


@pytest.mark.parametrize("name", FORMS)
def test_a_form_cannot_be_trained(name, rng):
    layer = form_of(name, 6)
    model = random_model(rng, [layer])
    with pytest.raises(TrainingError, match="can be served but not trained"):
        Network(model.spec, dict(model.parameters))
