"""`streamrnn export --to torch`: what comes back is the same, and PyTorch answers alike."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelError
from streamrnn.exporters.network import prove_export
from streamrnn.exporters.torch import export_torch
from streamrnn.importers.original.trial import trial_inputs
from streamrnn.importers.proof import TOLERANCE
from streamrnn.importers.source import import_file
from streamrnn.importers.torch import TorchOptions
from streamrnn.model.layers.frame import DenseSpec
from streamrnn.model.model import Model
from streamrnn.model.parameters import parameter_shapes
from streamrnn.model.spec import InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.reference.model import ReferenceModel
from tests.support.models import random_model

CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")
TRANSFORMED = {
    "inputs": [InputSpec("a", center=5.0, scale=0.5), InputSpec("b"), InputSpec("c", scale=2.0)],
    "outputs": [OutputSpec("u", scale=3.0, center=-70.0), OutputSpec("v")],
}
OUTPUTS = (OutputSpec("a"), OutputSpec("b"))
TOKEN = [InputSpec("token", kind="token", num_categories=11, embedding_size=5)]


def model_of(*layers, **more):
    return random_model(np.random.default_rng(0), layers, **more)


def models():
    for cell in CELLS:
        options = {"nonlinearity": "relu"} if cell == "rnn_relu" else {}
        for num_layers in (1, 3):
            yield f"{cell}_{num_layers}", model_of(*[(cell, 7)] * num_layers), options
        yield f"{cell}_without_head", model_of((cell, 5), head=None), options
        yield f"{cell}_token", model_of((cell, 7), inputs=TOKEN), options
        yield f"{cell}_transformed", model_of((cell, 7), **TRANSFORMED), options
    for head in ("tanh", "sigmoid", "softmax"):
        yield head, model_of(("gru", 8), head=head, outputs=4), {"activation": head}
    yield "projected", model_of(LayerSpec("lstm", 9, projection_size=4), ("gru", 5)), {}


MODELS = list(models())
NAMES = [name for name, *_ in MODELS]


@pytest.mark.parametrize(("name", "model", "options"), MODELS, ids=NAMES)
def test_what_comes_back_answers_the_same(tmp_path, name, model, options):
    path = tmp_path / "m.safetensors"
    exported = export_torch(model)
    path.write_bytes(exported.data)
    found = import_file(path, TorchOptions(**options)).model
    if name.endswith("transformed"):  # folded, and rounded there
        x = trial_inputs(model.spec, 2, 200)
        wanted = ReferenceModel(model).steps(x)
        error = np.abs(ReferenceModel(found).steps(x) - wanted).max(axis=(0, 1))
        assert (error <= 1e-5 * np.ptp(wanted, axis=(0, 1))).all()
        return
    assert found.spec.layers == model.spec.layers
    assert found.spec.head == model.spec.head
    for ours, theirs in zip(model.parameters.values(), found.parameters.values(), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(("name", "model", "options"), MODELS, ids=NAMES)
def test_pytorch_answers_the_same_as_a_sequence_and_step_by_step(name, model, options):
    pytest.importorskip("torch", exc_type=ImportError)
    proofs = prove_export(model, export_torch(model), TOLERANCE)
    assert [proof.failure for proof in proofs] == [None, None]


def test_all_that_pytorch_has_not_is_refused_by_name():
    model = model_of(
        LayerSpec("lstm", 6, peepholes=True),
        LayerSpec("gru", 6, layer_norm=True),
        LayerSpec("gru", 6, reset_after=False, gate_activation="hard_sigmoid_fifth"),
        inputs=[
            InputSpec("change", difference=True),
            InputSpec("held", missing="hold"),
            InputSpec("colour", kind="categorical", num_categories=3),
        ],
        outputs=[OutputSpec("level", difference_of="change")],
    )
    with pytest.raises(ModelError) as caught:
        export_torch(model)
    for text in (
        "layer 0 (lstm with peepholes) has peepholes",
        "has a layer normalisation within the cell",
        "has its reset before the product",
        "the gates' function hard_sigmoid_fifth",
        "input 'change' has a transform of its own (difference)",
        "input 'held' has a transform of its own (missing: hold)",
        "input 'colour' is categorical",
        "output 'level' is added to the level of 'change'",
    ):
        assert text in str(caught.value)


def test_layers_of_other_kinds_are_refused_by_name():
    spec = ModelSpec((InputSpec("x"),), (DenseSpec(3, "relu"), LayerSpec("gru", 2)), OUTPUTS)
    shapes = parameter_shapes(spec).items()
    model = Model(spec, {name: np.zeros(shape, np.float32) for name, shape in shapes})
    with pytest.raises(ModelError, match="it has the layer dense 3 relu"):
        export_torch(model)


def test_first_states_and_activations_within_a_cell_are_refused_by_name():
    model = model_of(
        LayerSpec("lstm", 3, first_state=True, cell_activation="relu", output_activation="elu")
    )
    with pytest.raises(ModelError) as caught:
        export_torch(model)
    for text in ("a trained first state", "the candidate's relu", "the output's elu"):
        assert text in str(caught.value)


def test_a_centre_that_would_be_rounded_away_is_refused():
    model = model_of(("gru", 6), inputs=[InputSpec("pressure", center=101_325.0, scale=0.01)])
    with pytest.raises(ModelError, match="lose too much when they are multiplied"):
        export_torch(model)
