"""Real files of other frameworks, where they are at hand: what becomes of each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamrnn.errors import ModelFileError
from streamrnn.importers.source import import_file
from streamrnn.importers.torch import TorchOptions
from streamrnn.reference.model import ReferenceModel
from tests.importers.shared import SHARED

MODELS = SHARED / "models"
RELATIVE = 1e-5  # of the outputs' scale
ZEROS = TorchOptions(first_state="zeros")
# Options, and the outputs that come out right with them.
RIGHT: dict[str, tuple[TorchOptions, str]] = {
    name: (TorchOptions(), "y")
    for name in (
        "dtln_model_1.onnx",
        "onnx_gru_default.onnx",
        "onnx_gru_f16.onnx",
        "onnx_gru_lbr1.onnx",
        "onnx_gru_relu.onnx",
        "onnx_lstm_f16.onnx",
        "onnx_lstm_f64.onnx",
        "onnx_lstm_hardsigmoid.onnx",
        "onnx_lstm_hardsigmoid_sixth.onnx",
        "onnx_lstm_initial.onnx",
        "onnx_lstm_layout1.onnx",
        "onnx_lstm_lowercase.onnx",
        "onnx_lstm_nobias.onnx",
        "onnx_lstm_opset7.onnx",
        "onnx_lstm_plain.onnx",
        "onnx_rnn_default.onnx",
        "onnx_rnn_relu.onnx",
        "keras_embedding_maskzero.keras",
        "keras_gru_reset_after.h5",
        "keras_gru_reset_after.keras",
        "keras_gru_reset_before.keras",
        "keras_lstm_dense.h5",
        "keras_lstm_dense.keras",
        "keras_lstm_hardsigmoid.keras",
        "keras_lstm_relu.keras",
        "keras_simplernn_relu.keras",
        "keras_stateful.keras",
        "nam_BossLSTM-1x16.nam",
        "nam_lstm.nam",
        "guitarml_lstm8_ts9_pytorch.json",
    )
} | {
    name: (TorchOptions(), "out_0")
    for name in (
        "torch_gru_legacy.onnx",
        "torch_lstm_dynamo.onnx",
        "torch_lstm_legacy.onnx",
        "torch_lstm_nobias_dynamo.onnx",
        "torch_lstm_nobias_legacy.onnx",
        "torch_lstm_state_dynamo.onnx",
        "torch_lstmcell_state_dynamo.onnx",
        "torch_rnn_relu_dynamo.onnx",
    )
}
RIGHT["rtneural_gru_torch.json"] = RIGHT["rtneural_lstm_1d.json"] = (TorchOptions(), "y")
RIGHT["silero_vad_16k.safetensors"] = (
    TorchOptions(prefix="lstm_cell", head="none"),
    "y",
)
REFUSED = {
    # They cannot stream.
    "onnx_lstm_bidir.onnx": "bidirectional",
    "onnx_lstm_reverse.onnx": "backwards",
    "torch_lstm_bi_dynamo.onnx": "bidirectional",
    "torch_lstm_bi_legacy.onnx": "bidirectional",
    "keras_backwards.keras": "backwards",
    "keras_bidir.keras": "bidirectional",
    # What no model has yet.
    "onnx_gru_clip.onnx": "clips its gates",
    "onnx_lstm_clip.onnx": "clips its gates",
    "onnx_lstm_inputforget.onnx": "input_forget",
    "onnx_rnn_affine.onnx": "activation affine",
    "silero_vad_16k.safetensors": "a convolution",
    # What is missing.
    "keras_gru_reset_after.weights.h5": "holds weights alone.*--config",
    "keras_lstm_dense.weights.h5": "holds weights alone.*--config",
}
SPECIAL = {"silero_vad_16k.safetensors": "silero_vad_16k_lstm_cell.npz"}

pytestmark = pytest.mark.skipif(not MODELS.is_dir(), reason="the models are not at hand")


def needs_reader(name: str) -> None:
    if name.endswith(".onnx"):
        pytest.importorskip("onnx")
    if name.startswith("keras"):
        pytest.importorskip("h5py")


def recording(name: str) -> Path:
    return MODELS / SPECIAL.get(name, f"{name.removesuffix('.weights.h5').rsplit('.', 1)[0]}.npz")


@pytest.mark.parametrize("name", RIGHT)
def test_a_file_comes_out_right(name):
    needs_reader(name)
    check(name, *RIGHT[name])


@pytest.mark.parametrize("name", ["nam_BossLSTM-1x16.nam", "nam_lstm.nam"])
def test_a_first_state_can_be_left_out(name):
    check(name, ZEROS, "y_from_zero")


def check(name: str, options: TorchOptions, key: str) -> None:
    model = import_file(MODELS / name, options).model
    with np.load(recording(name)) as recorded:
        x = next(recorded[k] for k in ("x", "in_x", "in_input") if k in recorded)
        y = recorded[key].reshape(-1, model.spec.output_size)
    x = x.reshape(-1, model.spec.num_inputs)
    got = ReferenceModel(model).steps(x if model.spec.is_token else x.astype(np.float32))
    assert np.abs(got - y).max() <= RELATIVE * np.abs(y).max()


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused_with_its_reason(name):
    needs_reader(name)
    with pytest.raises(ModelFileError, match=REFUSED[name]):
        import_file(MODELS / name)


@pytest.mark.parametrize("name", ["keras_gru_reset_after", "keras_lstm_dense"])
@pytest.mark.parametrize("config", ["keras", "h5"])
def test_weights_alone_come_out_right_with_a_configuration(name, config):
    pytest.importorskip("h5py")
    found = import_file(MODELS / f"{name}.weights.h5", config=MODELS / f"{name}.{config}")
    whole = import_file(MODELS / f"{name}.keras")
    for key, value in whole.model.parameters.items():
        assert np.array_equal(found.model.parameters[key], value)
