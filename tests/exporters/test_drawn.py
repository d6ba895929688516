"""Models at random go to ONNX and come back."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from streamrnn.errors import ModelFileError
from streamrnn.exporters.onnx.model import export_onnx
from streamrnn.importers.network import GraphOptions
from streamrnn.importers.original.run import record_original
from streamrnn.importers.original.trial import trial_inputs
from streamrnn.importers.source import import_file
from streamrnn.reference.model import ReferenceModel
from tests.exporters.drawn import drawn_model
from tests.kernels.graphs import graph_model

onnx = pytest.importorskip("onnx")

NUM_STEPS = 12
# Memories behind memories, and a model of the identity alone: refused by name.
NOT_READ = {136, 173, 243, 311}
WHEELS = Path(__file__).parents[2] / "build" / "silero"


def outputs_of(model):
    x = trial_inputs(model.spec, 2, NUM_STEPS)
    return x, ReferenceModel(model).steps(x)


@pytest.mark.parametrize("seed", range(60))
def test_onnxruntime_answers_the_same(seed):
    pytest.importorskip("onnxruntime")
    model = drawn_model(seed)
    x, wanted = outputs_of(model)
    for _, y in export_onnx(model).answers(x):
        assert np.abs(y - wanted).max() <= 1e-5 * max(1.0, np.ptp(wanted))


@pytest.mark.parametrize("seed", [*range(60), *sorted(NOT_READ)])
def test_what_comes_back_answers_the_same(tmp_path, seed):
    model = drawn_model(seed)
    (tmp_path / "m.onnx").write_bytes(export_onnx(model).data)
    if seed in NOT_READ:
        with pytest.raises(ModelFileError):
            import_file(tmp_path / "m.onnx")
        return
    found = import_file(tmp_path / "m.onnx").model
    x, wanted = outputs_of(model)
    assert np.abs(ReferenceModel(found).steps(x) - wanted).max() <= 1e-6 * max(1.0, np.ptp(wanted))


@pytest.mark.parametrize("name", ["stft", "causal", "later layer", "frame to frame", "first state"])
def test_what_was_exported_is_proved_at_its_import(tmp_path, name):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "m.onnx"
    path.write_bytes(export_onnx(graph_model(np.random.default_rng(1), name)).data)
    found = import_file(path)
    recordings, reason = record_original(str(path), found)
    assert reason == ""
    for recording in recordings:
        error = np.abs(ReferenceModel(found.model).steps(recording.x) - recording.y).max()
        assert error <= 1e-5


@pytest.mark.parametrize(("name", "output"), [("stft", "next_kept_l0"), ("causal", "next_kept_l1")])
def test_a_state_that_does_not_come_back_is_refused(tmp_path, name, output):
    proto = onnx.load_from_string(export_onnx(graph_model(np.random.default_rng(1), name)).data)
    (node,) = [node for node in proto.graph.node if output in node.output]
    (cut,) = [each for each in proto.graph.node if node.input[0] in each.output]
    starts = next(item for item in proto.graph.initializer if item.name == cut.input[1])
    first = onnx.numpy_helper.to_array(starts) - 1  # one place more, and one less at the end
    starts.CopyFrom(onnx.numpy_helper.from_array(first, starts.name))
    ends = next(item for item in proto.graph.initializer if item.name == cut.input[2])
    ends.CopyFrom(onnx.numpy_helper.from_array(np.array([-1]), ends.name))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    state = output.removeprefix("next_")
    with pytest.raises(ModelFileError, match=f"{state}' is none of what|'{state}'.*is kept"):
        import_file(tmp_path / "m.onnx")


def test_feedback_of_another_size_is_refused(tmp_path):
    proto = onnx.load_from_string(
        export_onnx(graph_model(np.random.default_rng(1), "later layer")).data
    )
    nodes = {node.output[0]: node for node in proto.graph.node}
    a, b = nodes["next_before_l0"], nodes["next_before_l2"]
    a.input[0], b.input[0] = b.input[0], a.input[0]
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelFileError, match="is no value like the state"):
        import_file(tmp_path / "m.onnx")


@pytest.mark.skipif(not list(WHEELS.glob("*.whl")), reason="make demo-vad gets the wheel")
def test_silero_comes_back_to_the_bit(tmp_path):
    with zipfile.ZipFile(next(WHEELS.glob("*.whl"))) as wheel:
        data = wheel.read("silero_vad/data/silero_vad_16k_op15.onnx")
    (tmp_path / "vad.onnx").write_bytes(data)
    graph = GraphOptions({"sr": 16000, "sequence": 576}, 64)
    model = import_file(tmp_path / "vad.onnx", graph=graph).model
    (tmp_path / "back.onnx").write_bytes(export_onnx(model).data)
    found = import_file(tmp_path / "back.onnx").model
    assert [layer.describe() for layer in found.spec.layers] == [
        layer.describe() for layer in model.spec.layers
    ]
    for ours, theirs in zip(model.parameters.values(), found.parameters.values(), strict=True):
        assert np.array_equal(ours, theirs)
