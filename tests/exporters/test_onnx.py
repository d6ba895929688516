"""`streamrnn export --to onnx`: what comes back is the same, and onnxruntime answers alike."""

from __future__ import annotations

import re

import numpy as np
import pytest

from streamrnn.errors import ModelError, ModelFileError
from streamrnn.exporters.network import prove_export
from streamrnn.exporters.onnx.model import export_onnx
from streamrnn.importers.original.trial import trial_inputs
from streamrnn.importers.proof import TOLERANCE
from streamrnn.importers.source import import_file
from streamrnn.model.layers.base import LAYER_ACTIVATIONS, Layer
from streamrnn.model.layers.frame import (
    DenseSpec,
    MixSpec,
    NormSpec,
    ScaleSpec,
    SliceSpec,
)
from streamrnn.model.layers.memory import TimeConvSpec
from streamrnn.model.spec import InputSpec, LayerSpec, OutputSpec
from streamrnn.reference.model import ReferenceModel
from tests.kernels.graphs import GRAPHS, graph_model
from tests.support.forms import FORMS, form_of
from tests.support.models import random_graph, random_model
from tests.tolerances import REFERENCE_FLOAT64

onnx = pytest.importorskip("onnx")

CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")
FEW = [name for name in FORMS if "norm" not in name and "projected" not in name]
TRANSFORMED = {
    "inputs": [InputSpec("a", center=5.0, scale=0.3), InputSpec("b"), InputSpec("c", scale=2.0)],
    "outputs": [OutputSpec("u", scale=3.0, center=-70.0), OutputSpec("v")],
}
TOKEN = [InputSpec("token", kind="token", num_categories=11, embedding_size=5)]


def model_of(*layers, seed=0, **more):
    return random_model(np.random.default_rng(seed), layers, **more)


def models():
    for cell in CELLS:
        for num_layers in (1, 2, 3):
            yield f"{cell}_{num_layers}", model_of(*[(cell, 6 + num_layers)] * num_layers)
        yield f"{cell}_without_head", model_of((cell, 5), head=None)
        yield f"{cell}_token", model_of((cell, 7), inputs=TOKEN)
        yield f"{cell}_transformed", model_of((cell, 7), **TRANSFORMED)
        yield f"{cell}_1", model_of((cell, 1), inputs=1, outputs=1)
    for name in FEW:
        yield name, model_of(form_of(name, 9), form_of(name, 5))
    for head in ("tanh", "sigmoid", "softmax"):
        yield head, model_of(("gru", 8), head=head, outputs=4)
    yield "all_cells", model_of(("lstm", 5), ("rnn_relu", 4), ("gru", 6), ("rnn_tanh", 3))


MODELS = list(models())
NAMES = [name for name, *_ in MODELS]


@pytest.mark.parametrize(("name", "model"), MODELS, ids=NAMES)
def test_what_comes_back_answers_the_same(tmp_path, name, model):
    path = tmp_path / "m.onnx"
    path.write_bytes(export_onnx(model).data)
    found = import_file(path)
    x = trial_inputs(model.spec, 2, 200)
    wanted = ReferenceModel(model).steps(x)
    scale = max(1.0, np.abs(wanted).max())
    # Centres and scales that are not powers of two come back rounded to float32.
    most = 1e-6 if name.endswith("transformed") else REFERENCE_FLOAT64
    assert np.abs(ReferenceModel(found.model).steps(x) - wanted).max() <= most * scale
    assert [layer.cell for layer in found.model.spec.chain] == [
        layer.cell for layer in model.spec.chain
    ]
    num_states = sum(len(layer.state_sizes) for layer in model.spec.chain)
    assert sum("is kept by the stream" in note for note in found.notes) == num_states


@pytest.mark.parametrize(("name", "model"), MODELS, ids=NAMES)
def test_onnxruntime_answers_the_same_as_a_sequence_and_step_by_step(name, model):
    pytest.importorskip("onnxruntime")
    proofs = prove_export(model, export_onnx(model), TOLERANCE)
    assert [proof.failure for proof in proofs] == [None, None]


MIXED = [
    InputSpec("plain", center=0.5, scale=2.0),
    InputSpec("mean", missing="mean", fill=-0.75, center=1.0),
    InputSpec("masked", missing="mask", fill=0.5, scale=3.0),
    InputSpec("colour", kind="categorical", num_categories=3),
    InputSpec("place", kind="categorical", num_categories=7, embedding_size=4),
]


@pytest.mark.parametrize("inputs", [MIXED, MIXED[1:2], MIXED[3:4]], ids=["all", "one", "one-hot"])
def test_inputs_with_transforms_become_nodes(tmp_path, inputs):
    model = model_of(("lstm", 6), inputs=inputs)
    exported = export_onnx(model)
    (tmp_path / "m.onnx").write_bytes(exported.data)
    with pytest.raises(ModelFileError):  # no silent other model
        import_file(tmp_path / "m.onnx")
    pytest.importorskip("onnxruntime")
    proofs = prove_export(model, exported, TOLERANCE)
    assert [proof.failure for proof in proofs] == [None, None]


READ_BACK = {"dense_before", "dense_after", "scale", "relu", "elu", "softplus", "gru_relu", "tanh"}


OTHER: dict[str, list[Layer]] = {
    "dense_before": [DenseSpec(5, "relu"), LayerSpec("lstm", 4)],
    "dense_after": [LayerSpec("gru", 4), DenseSpec(6, "tanh"), DenseSpec(2)],
    "scale": [ScaleSpec(), LayerSpec("gru", 4), ScaleSpec()],
    "norm": [LayerSpec("gru", 4), NormSpec(), DenseSpec(2)],
    "skip": [
        LayerSpec("gru", 3, name="a"),
        MixSpec((1.0, 0.5), name="b", reads=("a", "input")),
        LayerSpec("lstm", 4),
    ],
    "gate": [
        LayerSpec("gru", 3, name="a"),
        MixSpec(is_product=True, reads=("a", "input")),
        DenseSpec(2),
    ],
    "joined": [LayerSpec("gru", 3, name="a"), LayerSpec("lstm", 4, reads=("a", "input"))],
    "slice": [LayerSpec("gru", 5), SliceSpec(channels=(1, 4))],
}
OTHER |= {
    f"{cell}_{name}": [LayerSpec(cell, 4, cell_activation=name)]
    for cell in ("gru", "lstm")
    for name in ("relu", "softsign", "elu", "softplus", "identity", "sigmoid")
}
OTHER |= {name: [LayerSpec("gru", 6), DenseSpec(4, name)] for name in LAYER_ACTIVATIONS}


@pytest.mark.parametrize("name", OTHER)
def test_layers_of_every_kind_answer_the_same_in_onnxruntime(tmp_path, name):
    model = random_graph(OTHER[name])
    exported = export_onnx(model)
    (tmp_path / "m.onnx").write_bytes(exported.data)
    try:
        found = import_file(tmp_path / "m.onnx").model
    except ModelError:  # no silent other model
        assert name not in READ_BACK
    else:
        x = trial_inputs(model.spec, 2, 200)
        wanted = ReferenceModel(model).steps(x)
        assert np.abs(ReferenceModel(found).steps(x) - wanted).max() <= 1e-6
    pytest.importorskip("onnxruntime")
    proofs = prove_export(model, exported, TOLERANCE)
    assert [proof.failure for proof in proofs] == [None, None]


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_of_any_kind_is_exported_right_or_refused_by_name(name):
    model = graph_model(np.random.default_rng(1), name)
    refusal = ""
    try:
        exported = export_onnx(model)
    except ModelError as error:
        refusal = str(error)
    if refusal:
        assert re.search(r"layer \d+ \(|input '|mask_value", refusal)
        return
    pytest.importorskip("onnxruntime")
    proofs = prove_export(model, exported, TOLERANCE)
    assert [proof.failure for proof in proofs] == [None, None]


def test_layers_that_are_not_exported_yet_are_refused_by_name():
    model = random_graph(
        [
            DenseSpec(3, name="a", reads=("input", "b[t-1]")),
            TimeConvSpec(4, 2),
            LayerSpec("gru", 4, first_state=True, name="b"),
            LayerSpec("lstm", 4, cell_activation="hard_tanh"),
        ]
    )
    with pytest.raises(ModelError) as caught:
        export_onnx(model)
    for text in (
        "layer 0 (dense 3) reads an output of the step before",
        "layer 1 (causal conv 4 (kernel 2)) is of a kind that is not exported yet",
        "layer 2 (gru) has a trained first state",
        "layer 3 (lstm with hard_tanh candidate) has an activation that ONNX has not",
    ):
        assert text in str(caught.value)


def test_all_that_onnx_has_not_is_refused_by_name():
    model = model_of(
        LayerSpec("lstm", 6, projection_size=4),
        LayerSpec("gru", 6, layer_norm=True),
        inputs=[
            InputSpec("change", difference=True),
            InputSpec("held", missing="hold"),
            InputSpec("plain"),
        ],
        outputs=[OutputSpec("level", difference_of="change")],
    )
    with pytest.raises(ModelError) as caught:
        export_onnx(model)
    for text in (
        "layer 0 (lstm with projection to 4) has a projection",
        "has a layer normalisation within the cell",
        "input 'change' needs the change since its last value",
        "input 'held' needs the last value seen",
        "output 'level' is added to the level of 'change'",
    ):
        assert text in str(caught.value)


def test_the_file_says_what_its_inputs_and_outputs_are():
    model = model_of(("lstm", 4), **TRANSFORMED)
    proto = onnx.load_from_string(export_onnx(model).data)
    assert [item.name for item in proto.graph.input] == ["x", "h_l0", "c_l0"]
    assert [item.name for item in proto.graph.output] == ["y", "next_h_l0", "next_c_l0"]
    facts = {item.key: item.value for item in proto.metadata_props}
    assert facts["fingerprint"] == model.fingerprint
    assert facts["inputs"] == '[["a", ""], ["b", ""], ["c", ""]]'
