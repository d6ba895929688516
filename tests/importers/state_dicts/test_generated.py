"""Networks drawn at random, run by PyTorch, and imported by the names of their modules."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.importers.torch import TorchOptions, import_torch
from streamrnn.model.layers.base import LAYER_ACTIVATIONS
from streamrnn.reference.model import ReferenceModel

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")
STEPS = 200
RELATIVE = 1e-5  # of the outputs' scale, from PyTorch's float32
EXACT = 1e-6  # from PyTorch's float64: normalisations at rest become float32 once
CELLS = ["rnn", "rnn_relu", "gru", "lstm", "lstm_proj"]


@pytest.fixture
def torch():
    pytest.importorskip("safetensors.torch")
    return pytest.importorskip("torch")


@pytest.fixture
def nets(torch):
    from tests.importers.state_dicts import make_nets

    return make_nets


def compare(net, tmp_path, first=None):
    import torch
    from safetensors.torch import save_file

    net.eval()
    save_file(net.state_dict(), tmp_path / "m.safetensors")
    has_rnn = any(isinstance(module, torch.nn.RNN) for module in net.modules())
    options = TorchOptions(
        layers=net.names,
        skip=net.skip,
        first_state=first,
        nonlinearity=net.nonlinearity if has_rnn else None,
    )
    model = import_torch(tmp_path / "m.safetensors", options).model
    x = torch.randn(1, STEPS, net.inputs)
    with torch.no_grad():
        y = net(x)[0].numpy()
        exact = net.double()(x.double())[0].numpy()
    scale = np.abs(exact).max()
    reference = ReferenceModel(model).steps(x[0].numpy())
    assert np.abs(reference - exact).max() <= EXACT * scale
    assert np.abs(reference - y).max() <= RELATIVE * scale
    assert np.abs(Engine(model).steps("a", x[0].numpy()) - y).max() <= RELATIVE * scale


@pytest.mark.parametrize("seed", range(60))
def test_a_drawn_network_answers_as_pytorch(torch, nets, seed, tmp_path):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = nets.draw_net(rng)
    first = []
    if rng.random() < 0.4:
        for part in list(net.row):
            if isinstance(part, str) and isinstance(getattr(net, part), torch.nn.RNNBase):
                first += net.train_first(part)
    compare(net, tmp_path, first or None)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_answers_as_pytorch(torch, nets, cell, bias, layers, tmp_path):
    torch.manual_seed(layers)
    net = nets.Net(3)
    net.recurrent(cell, 13, layers, bias)
    net.linear(2)
    compare(net, tmp_path)


@pytest.mark.parametrize("kind", LAYER_ACTIVATIONS)
def test_every_activation_answers_as_pytorch(torch, nets, kind, tmp_path):
    torch.manual_seed(1)
    net = nets.Net(3)
    net.linear(7)
    net.activation(kind)
    net.recurrent("gru", 9, 1, bias=True)
    net.activation(kind)
    net.linear(5)
    net.activation(kind)
    compare(net, tmp_path)
