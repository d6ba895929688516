"""`streamrnn export --to torch`: what comes back is the same, and PyTorch answers alike."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelError
from streamrnn.exporters.network import prove_export
from streamrnn.exporters.torch import layers
from streamrnn.exporters.torch.model import export_torch
from streamrnn.importers.original.trial import trial_inputs
from streamrnn.importers.proof import TOLERANCE
from streamrnn.importers.source import import_file
from streamrnn.importers.torch import TorchOptions
from streamrnn.model.layers.frame import DenseSpec, MixSpec
from streamrnn.model.model import Model
from streamrnn.model.spec import InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.reference.model import ReferenceModel
from tests.exporters.drawn import drawn_model
from tests.kernels.graphs import GRAPHS, graph_model, head_reading_model
from tests.support.forms import FORMS, form_of
from tests.support.models import EVERY_KIND_OF_INPUT, random_model, random_parameters

pytestmark = pytest.mark.usefixtures("few_steps")

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


def graph_models():
    yield from ((name, graph_model(np.random.default_rng(1), name)) for name in GRAPHS)
    yield "jordan of a head", head_reading_model(np.random.default_rng(1))
    for name in FORMS:
        yield name, model_of(form_of(name, 9), form_of(name, 5))
    projected = LayerSpec("lstm", 9, projection_size=4, first_state=True)
    yield "first state of a projection", model_of(projected)
    yield "masked tokens", model_of(("gru", 5), ("lstm", 4), inputs=TOKEN, mask_value=3.0)
    levels = [OutputSpec("level", difference_of="change", scale=2.0), OutputSpec("v", center=3.0)]
    yield "every input", model_of(("lstm", 6), inputs=EVERY_KIND_OF_INPUT, outputs=levels)
    pressure = [InputSpec("pressure", center=101_325.0, scale=0.01)]
    yield "a centre that rounding would take away", model_of(("gru", 6), inputs=pressure)


GRAPH_MODELS = dict(graph_models())


@pytest.mark.parametrize("name", GRAPH_MODELS)
def test_a_graph_of_any_kind_answers_the_same_in_pytorch(name):
    exported = export_torch(GRAPH_MODELS[name])
    assert "class Net(torch.nn.Module)" in exported.text
    pytest.importorskip("torch", exc_type=ImportError)
    proofs = prove_export(GRAPH_MODELS[name], exported, TOLERANCE)
    assert [proof.failure for proof in proofs] == [None] * len(proofs)


@pytest.mark.parametrize("seed", range(40))
def test_a_model_at_random_answers_the_same_in_pytorch(seed):
    pytest.importorskip("torch", exc_type=ImportError)
    model = drawn_model(seed)
    x = trial_inputs(model.spec, 2, 12)
    wanted = ReferenceModel(model).steps(x)
    for _, y in export_torch(model).answers(x):
        assert np.abs(y - wanted).max() <= 1e-5 * max(1.0, np.ptp(wanted))


def test_no_text_of_a_users_stands_in_the_module():
    name = 'x"""; import os #'
    spec = ModelSpec(
        (InputSpec(name, missing="mean"),),
        (DenseSpec(3, name=name), MixSpec((1.0, 2.0), reads=(name, name)), DenseSpec(2)),
        (OutputSpec(name), OutputSpec("b")),
    )
    model = Model(spec, random_parameters(np.random.default_rng(0), spec))
    assert "import os" not in export_torch(model).text


def test_an_activation_that_is_not_known_is_refused_by_name(monkeypatch):
    monkeypatch.delitem(layers._FUNCTIONS, "selu")
    spec = ModelSpec((InputSpec("x"),), (DenseSpec(2, "selu"),), OUTPUTS)
    model = Model(spec, random_parameters(np.random.default_rng(0), spec))
    with pytest.raises(ModelError, match="the activation selu is not exported"):
        export_torch(model)
