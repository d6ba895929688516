"""The CUDA kernels on a GPU: ``pytest -m gpu``."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'streamrnn[cuda]'")

from streamrnn import Engine
from streamrnn.errors import DeviceError
from streamrnn.kernels.cuda import network
from streamrnn.kernels.cuda.compiler import SIMULATED, require_gpu
from streamrnn.model.spec import OutputSpec
from streamrnn.reference.model import ReferenceModel
from streamrnn_client import Client
from streamrnn_server.testing import serving
from tests.support.engines import assert_same_bits, stepped
from tests.support.forms import FORMS, form_of
from tests.support.models import EVERY_KIND_OF_INPUT, random_inputs, random_model
from tests.tolerances import KERNEL_RELATIVE, TENSOR

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu():
    if SIMULATED:
        pytest.skip("the simulator is on; run `pytest -m gpu` by itself")
    try:
        require_gpu()
    except DeviceError as error:
        pytest.skip(str(error))


# Sizes that divide neither tile, one that divides both, and one that needs more than one block.
@pytest.mark.parametrize(
    ("layers", "head"),
    [
        ([("lstm", 1)], None),
        ([("rnn_relu", 3)], "tanh"),
        ([("gru", 17)], "identity"),
        ([("lstm", 50)], "sigmoid"),
        ([("lstm", 128)], None),
        ([("lstm", 512)], "identity"),
        ([("rnn_tanh", 257)], "softmax"),
        ([("lstm", 40), ("gru", 130), ("rnn_tanh", 3), ("lstm", 33)], "softmax"),
    ],
)
@pytest.mark.parametrize("num_streams", [1, 7, 131])
def test_agrees_with_the_reference_after_1000_steps(rng, layers, head, num_streams):
    outputs = layers[-1][1] if head is None else 11
    model = random_model(rng, layers=layers, inputs=5, outputs=outputs, head=head)
    num_steps = 1000 if num_streams == 7 else 50
    x = random_inputs(rng, model.spec, num_streams, num_steps)
    expected = ReferenceModel(model).steps(x)
    y = stepped(Engine(model, device="cuda", max_streams=256), x)
    assert np.max(np.abs(y - expected)) <= KERNEL_RELATIVE * np.max(np.abs(expected))


def test_transforms_agree_with_the_reference(rng):
    outputs = [OutputSpec("plain"), OutputSpec("scaled", center=3.0, scale=2.5)]
    outputs += [
        OutputSpec(f"next {item.name}", scale=0.5, difference_of=item.name)
        for item in EVERY_KIND_OF_INPUT
        if item.difference
    ]
    model = random_model(rng, layers=[("gru", 12)], inputs=EVERY_KIND_OF_INPUT, outputs=outputs)
    x = random_inputs(rng, model.spec, 50, 60)
    y = stepped(Engine(model, device="cuda", max_streams=64), x)
    np.testing.assert_allclose(y, ReferenceModel(model).steps(x), rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_the_bits_are_those_of_the_cpu(rng, cell):
    """As long as no number is subnormal: the CPU takes those for 0."""
    model = random_model(rng, layers=[(cell, 100), (cell, 33)], inputs=9, head="tanh")
    x = random_inputs(rng, model.spec, 200, 20)
    gpu = stepped(Engine(model, device="cuda", max_streams=256), x)
    assert_same_bits(gpu, stepped(Engine(model, max_streams=256), x))


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
@pytest.mark.parametrize("shape", network.TILING.shapes)
def test_the_bits_are_those_of_the_cpu_at_every_size(rng, monkeypatch, cell, shape):
    """In every tile. The chunks' kernel, which each model has of its own, is left out."""
    tiling = dataclasses.replace(network.TILING, shapes=(shape,))
    monkeypatch.setattr(network, "TILING", tiling)
    monkeypatch.setattr(network, "persistent_shape", lambda *args: None)
    for size in range(1, 131):
        model = random_model(rng, layers=[(cell, size)], inputs=size % 19 + 1, head="tanh")
        x = random_inputs(rng, model.spec, 9, 10)
        gpu = stepped(Engine(model, device="cuda", max_streams=16), x)
        assert_same_bits(gpu, stepped(Engine(model, max_streams=16), x))


@pytest.mark.parametrize("name", FORMS)
def test_the_bits_of_other_forms_are_those_of_the_cpu(rng, name):
    model = random_model(rng, layers=[form_of(name, 70), form_of(name, 33)], inputs=9)
    x = random_inputs(rng, model.spec, 200, 10)
    gpu = stepped(Engine(model, device="cuda", max_streams=256), x)
    assert_same_bits(gpu, stepped(Engine(model, max_streams=256), x))


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_the_bits_of_int8_weights_are_those_of_the_cpu(rng, cell):
    model = random_model(rng, layers=[(cell, 100)], inputs=9, head="tanh")
    x = random_inputs(rng, model.spec, 200, 10)
    engines = (Engine(model, each, 256, "int8") for each in ("cuda", "cpu"))
    assert_same_bits(*(stepped(engine, x) for engine in engines))


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_bits_depend_neither_on_the_batch_nor_on_the_run(rng, cell):
    model = random_model(rng, layers=[(cell, 200)], inputs=9, outputs=4, head="softmax")
    x = random_inputs(rng, model.spec, 3000, 4)
    together = stepped(Engine(model, device="cuda", max_streams=4096), x)
    assert_same_bits(stepped(Engine(model, device="cuda", max_streams=4096), x), together)
    engine = Engine(model, device="cuda", max_streams=4096)
    rows, order = engine.rows(range(3000)), rng.permutation(3000)
    for t in range(4):
        for batch in np.split(order, [1, 2, 40, 300, 2500]):
            assert_same_bits(engine.batch(rows[batch], x[batch, t]), together[batch, t])


@pytest.mark.parametrize("layers", [[("lstm", 512)], [("gru", 60), ("lstm", 30)]])
def test_a_chunk_is_its_steps_to_the_bit(rng, layers):
    model = random_model(rng, layers=layers, inputs=9, outputs=4)
    x = random_inputs(rng, model.spec, 1, 300)
    singly = stepped(Engine(model, device="cuda", max_streams=4), x)[0]
    engine = Engine(model, device="cuda", max_streams=4)
    chunks = [engine.steps("a", part) for part in np.split(x[0], [1, 120])]
    assert_same_bits(np.concatenate(chunks), singly)


@pytest.mark.parametrize("num_streams", [2, 3, 8])
def test_a_chunk_of_a_few_streams_is_their_steps_to_the_bit(rng, num_streams):
    model = random_model(rng, layers=[("lstm", 512), ("gru", 17)], inputs=9, head="softmax")
    x = random_inputs(rng, model.spec, num_streams, 40)
    expected = stepped(Engine(model, device="cuda", max_streams=8), x)
    engine: Any = Engine(model, device="cuda", max_streams=8)
    assert engine._device._network.max_persistent_rows >= 1
    rows, y = engine.rows(range(num_streams)), np.empty(expected.shape, np.float32)
    flat = np.ascontiguousarray(x.reshape(-1, x.shape[-1]), dtype=np.float32)
    assert engine._device.advance(rows, flat, y.reshape(len(flat), -1), 40) == 0
    assert_same_bits(y, expected)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("layers", [[("lstm", 257)], [("gru", 40), ("rnn_tanh", 130)]])
def test_tensor_cores_agree_with_the_reference_and_with_themselves(rng, precision, layers):
    model = random_model(rng, layers=layers, inputs=9, outputs=4)
    x = random_inputs(rng, model.spec, 3000, 4)
    engine = Engine(model, device="cuda", max_streams=4096, precision=precision)
    together = stepped(engine, x)
    error = np.max(np.abs(together - ReferenceModel(model).steps(x)))
    assert TENSOR[precision] / 1000 < error < 5 * TENSOR[precision]
    engine = Engine(model, device="cuda", max_streams=4096, precision=precision)
    rows, order = engine.rows(range(3000)), rng.permutation(3000)
    for t in range(4):
        for batch in np.split(order, [1, 2, 40, 300, 2500]):
            assert_same_bits(engine.batch(rows[batch], x[batch, t]), together[batch, t])


def test_100_000_streams(rng):
    model = random_model(rng, layers=[("lstm", 128)], inputs=64, head=None)
    x = random_inputs(rng, model.spec, 100_000, 2)
    engine = Engine(model, device="cuda", max_streams=100_000)
    y = stepped(engine, x)
    some = rng.choice(100_000, 500, replace=False)
    expected = ReferenceModel(model).steps(x[some])
    assert np.max(np.abs(y[some] - expected)) <= KERNEL_RELATIVE * np.max(np.abs(expected))
    assert_same_bits(engine._device.read_rows(np.array([99_999]))[0, :128], y[99_999, -1])


def test_more_streams_than_fit_are_refused_with_how_many_would(rng):
    model = random_model(rng, layers=[("lstm", 4096)])
    with pytest.raises(DeviceError, match=r"would fit; make the engine with max_streams=\d+"):
        Engine(model, device="cuda", max_streams=2**31 - 1)


def test_compute_sanitizer_finds_nothing():
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer (of the CUDA toolkit) is not on the PATH")
    code = (
        "import numpy as np; from streamrnn import Engine; from tests.support.models import *; "
        "rng = np.random.default_rng(0); "
        "model = random_model(rng, layers=[('lstm', 50), ('gru', 17)], head='softmax'); "
        "x = random_inputs(rng, model.spec, 9, 3); "
        "engine = Engine(model, device='cuda', max_streams=16); "
        "[engine.batch(engine.rows(range(9)), x[:, t]) for t in range(3)]; "
        "engine.steps(0, x[0])"
    )
    for check in ("memcheck", "racecheck", "synccheck"):
        done = subprocess.run(
            [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            env=os.environ,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_server_answers_as_the_engine_does(rng, tmp_path):
    model = random_model(rng, layers=[("lstm", 50), ("gru", 17)], inputs=5, outputs=3)
    x = random_inputs(rng, model.spec, 600, 4)
    expected = stepped(Engine(model, device="cuda", max_streams=600), x)
    options: dict[str, Any] = {"device": "cuda", "max_streams": 700, "state_dir": tmp_path}
    options["durability"] = "checkpoint"
    for part in (x[:, :3], x[:, 3:]):  # the second after a restart
        done = x.shape[1] - part.shape[1] if part.shape[1] == 1 else 0
        with serving({"m": model}, **options) as server, Client(server.endpoints[0]) as client:
            for t in range(part.shape[1]):
                ys = client.step_many({k: part[k, t] for k in range(600)}, model="m")
                assert_same_bits(np.stack([ys[k] for k in range(600)]), expected[:, done + t])
