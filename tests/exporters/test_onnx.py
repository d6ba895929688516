"""`streamrnn export --to onnx`: what comes back is the same, and onnxruntime answers alike."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.errors import ModelFileError
from streamrnn.exporters.network import prove_export
from streamrnn.exporters.onnx.model import export_onnx
from streamrnn.importers.original.trial import trial_inputs
from streamrnn.importers.proof import TOLERANCE
from streamrnn.importers.source import import_file
from streamrnn.model.layers.base import LAYER_ACTIVATIONS, Layer
from streamrnn.model.layers.frame import (
    ActivationSpec,
    DenseSpec,
    MixSpec,
    NormSpec,
    ScaleSpec,
    SliceSpec,
)
from streamrnn.model.spec import InputSpec, LayerSpec, OutputSpec
from streamrnn.reference.model import ReferenceModel
from tests.kernels.graphs import ABOVE_ZERO, GRAPHS, graph_model, head_reading_model
from tests.support.forms import FORMS, form_of
from tests.support.models import EVERY_KIND_OF_INPUT, random_graph, random_model
from tests.tolerances import REFERENCE_FLOAT64

onnx = pytest.importorskip("onnx")

pytestmark = pytest.mark.usefixtures("few_steps")

CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")
PLAIN = [name for name in FORMS if "norm" not in name]
TRANSFORMED = {
    "inputs": [InputSpec("a", center=5.0, scale=0.3), InputSpec("b"), InputSpec("c", scale=2.0)],
    "outputs": [OutputSpec("u", scale=3.0, center=-70.0), OutputSpec("v")],
}
TOKEN = [InputSpec("token", kind="token", num_categories=11, embedding_size=5)]


def model_of(*layers, seed=0, **more):
    return random_model(np.random.default_rng(seed), layers, **more)


def cells_of(model):
    return [layer.cell for layer in model.spec.layers if isinstance(layer, LayerSpec)]


def models():
    for cell in CELLS:
        for num_layers in (1, 2, 3):
            yield f"{cell}_{num_layers}", model_of(*[(cell, 6 + num_layers)] * num_layers)
        yield f"{cell}_without_head", model_of((cell, 5), head=None)
        yield f"{cell}_token", model_of((cell, 7), inputs=TOKEN)
        yield f"{cell}_transformed", model_of((cell, 7), **TRANSFORMED)
        yield f"{cell}_1", model_of((cell, 1), inputs=1, outputs=1)
    for name in PLAIN:
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
    # Centres and scales that are not powers of two come back rounded to float32, and so does a
    # projection that was multiplied into the matrix of h.
    is_rounded = name.endswith("transformed") or "projected" in name
    most = 1e-6 if is_rounded else REFERENCE_FLOAT64
    assert np.abs(ReferenceModel(found.model).steps(x) - wanted).max() <= most * scale
    assert cells_of(found.model) == cells_of(model)
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
CHANGE = [InputSpec("change", difference=True, missing="hold", center=0.1, scale=0.5)]
LEVELS = [OutputSpec("level", difference_of="change", scale=2.0), OutputSpec("other", center=3.0)]


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (MIXED, 2),
        (MIXED[1:2], 2),
        (MIXED[3:4], 2),
        (CHANGE, LEVELS),
        (EVERY_KIND_OF_INPUT, LEVELS),
    ],
    ids=["no memory", "one", "one-hot", "change", "all"],
)
def test_inputs_with_transforms_become_nodes(tmp_path, inputs, outputs):
    model = model_of(("lstm", 6), inputs=inputs, outputs=outputs)
    exported = export_onnx(model)
    (tmp_path / "m.onnx").write_bytes(exported.data)
    with pytest.raises(ModelFileError):  # no silent other model
        import_file(tmp_path / "m.onnx")
    pytest.importorskip("onnxruntime")
    proofs = prove_export(model, exported, TOLERANCE)
    assert [proof.failure for proof in proofs] == [None] * len(proofs)


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
OTHER |= {
    name: [LayerSpec("gru", 6), DenseSpec(4, "exp" if name in ABOVE_ZERO else name)]
    + [ActivationSpec(name)] * (name in ABOVE_ZERO)
    for name in LAYER_ACTIVATIONS
}


def comes_back(model, exported, folder):
    """Import what was exported and compare: to the rounding of a constant to float32."""
    (folder / "m.onnx").write_bytes(exported.data)
    found = import_file(folder / "m.onnx").model
    x = trial_inputs(model.spec, 2, 100)
    wanted = ReferenceModel(model).steps(x)
    return np.abs(ReferenceModel(found).steps(x) - wanted).max() <= 1e-6 * max(1, np.ptp(wanted))


@pytest.mark.parametrize("name", OTHER)
def test_layers_of_every_kind_answer_the_same_in_onnxruntime(tmp_path, name):
    model = random_graph(OTHER[name])
    exported = export_onnx(model)
    assert comes_back(model, exported, tmp_path)
    pytest.importorskip("onnxruntime")
    proofs = prove_export(model, exported, TOLERANCE)
    assert [proof.failure for proof in proofs] == [None, None]


def graph_models():
    yield from ((name, graph_model(np.random.default_rng(1), name)) for name in GRAPHS)
    yield "jordan of a head", head_reading_model(np.random.default_rng(1))
    for name in FORMS:
        yield name, model_of(form_of(name, 9), form_of(name, 5), seed=1)
    projected = LayerSpec("lstm", 9, projection_size=4, first_state=True)
    yield "first state of a projection", model_of(projected, seed=1)
    tokens = model_of(("gru", 5), ("lstm", 4), inputs=TOKEN, mask_value=3.0, seed=1)
    yield "masked tokens", tokens


GRAPH_MODELS = dict(graph_models())
# What the importer has no reading of: it says so by name.
NOT_READ = {"first state of a projection", "masked", "masked tokens"}


@pytest.mark.parametrize("name", GRAPH_MODELS)
def test_a_graph_of_any_kind_answers_the_same_in_onnxruntime(name):
    pytest.importorskip("onnxruntime")
    model = GRAPH_MODELS[name]
    proofs = prove_export(model, export_onnx(model), TOLERANCE)
    assert [proof.failure for proof in proofs] == [None] * len(proofs)


@pytest.mark.parametrize("name", GRAPH_MODELS)
def test_a_graph_of_any_kind_comes_back_the_same_or_is_refused(tmp_path, name):
    model = GRAPH_MODELS[name]
    try:
        is_same = comes_back(model, export_onnx(model), tmp_path)
    except ModelFileError:
        assert name in NOT_READ
    else:
        assert is_same


@pytest.mark.parametrize(
    ("broken", "size"),
    [
        ("{", 2),
        ("[1]", 2),
        ('{"h_l0": [NaN, 1]}', 2),
        ('{"h_l9": [1]}', 2),
        ('{"h_l0": 1}', 2),
        ('{"h_l0": 1}', 1),
        pytest.param(f'{{"h_l0": [1{"0" * 400}]}}', 1, id="a number above all floats"),
    ],
)
def test_first_states_that_do_not_fit_are_refused(tmp_path, broken, size):
    model = model_of(LayerSpec("gru", size, first_state=True))
    proto = onnx.load_from_string(export_onnx(model).data)
    for item in proto.metadata_props:
        if item.key == "first_states":
            item.value = broken
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelFileError, match="its metadata entry first_states"):
        import_file(tmp_path / "m.onnx")


def test_the_file_says_what_its_inputs_and_outputs_are():
    model = model_of(("lstm", 4), **TRANSFORMED)
    proto = onnx.load_from_string(export_onnx(model).data)
    assert [item.name for item in proto.graph.input] == ["x", "h_l0", "c_l0"]
    assert [item.name for item in proto.graph.output] == ["y", "next_h_l0", "next_c_l0"]
    facts = {item.key: item.value for item in proto.metadata_props}
    assert facts["fingerprint"] == model.fingerprint
    assert facts["inputs"] == '[["a", ""], ["b", ""], ["c", ""]]'
