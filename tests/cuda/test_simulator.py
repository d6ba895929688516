"""The CUDA kernels in numba's simulator: a Python thread for each GPU thread.

The simulator has no fused multiply-add. Where bits are compared with the CPU's, it is given one.
"""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'streamrnn[cuda]'")

from numba import cuda
from numba.cuda.simulator.kernel import FakeCUDAKernel

from streamrnn import Engine
from streamrnn.engine import cuda as engine_cuda
from streamrnn.errors import DeviceError, RecordError
from streamrnn.kernels.cuda import compiler as support
from streamrnn.kernels.cuda import network, persistent, ptx, transfer
from streamrnn.kernels.cuda.persistent import make_persistent_kernel, persistent_shape
from streamrnn.kernels.cuda.plan import GpuPlan
from streamrnn.kernels.cuda.tiles import TileShape
from streamrnn.model.model import Model
from streamrnn.model.spec import InputSpec, OutputSpec
from streamrnn.reference.model import ReferenceModel
from tests.cuda.grid import launch
from tests.support.engines import assert_same_bits, stepped
from tests.support.forms import FORMS, form_of
from tests.support.models import EVERY_KIND_OF_INPUT, random_inputs, random_model
from tests.tolerances import KERNEL

pytestmark = pytest.mark.skipif(not support.SIMULATED, reason="runs in the simulator")

# The shapes of the real tiling made small: a warp each. The wide tile has two streams a thread.
WIDE, NARROW = TileShape(1, 1, 4, 1, 2), TileShape(1, 1, 1, 1, 3)

REAL = network.TILING
ONE_BY_ONE = FakeCUDAKernel.__call__  # as numba has it


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    monkeypatch.setattr("numba.cuda.simulator.kernel.FakeCUDAKernel.__call__", launch)
    monkeypatch.setattr(network, "TILING", network.Tiling((WIDE, NARROW), 8))


@pytest.fixture
def exact_fma(monkeypatch):
    """Round once: 64 bits hold the product of two float32 exactly, and nearly always the sum."""
    from numba.cuda.simulator import kernelapi

    def fma(self, a, b, c):
        return np.float32(np.longdouble(a) * np.longdouble(b) + np.longdouble(c))

    if np.finfo(np.longdouble).nmant < 63:
        pytest.skip("no 80-bit numbers here")
    monkeypatch.setattr(kernelapi.FakeCUDAModule, "fma", fma)


def engine_on_gpu(model, max_streams=16, wide_from=1):
    """Make an engine; batches of at least ``wide_from`` blocks take the wide tile."""
    tiling = dataclasses.replace(network.TILING, min_blocks=wide_from)
    with mock.patch.object(network, "TILING", tiling):
        engine: Any = Engine(model, device="cuda", max_streams=max_streams)
    return engine


@pytest.mark.parametrize(
    ("layers", "head", "num_streams"),
    [
        ([("lstm", 50)], None, 3),
        ([("gru", 17)], "identity", 5),
        ([("rnn_tanh", 3), ("lstm", 1)], "softmax", 9),
        ([("rnn_relu", 17), ("gru", 3)], "tanh", 2),
    ],
)
def test_agrees_with_the_reference(rng, layers, head, num_streams):
    model = random_model(rng, layers=layers, inputs=5, outputs=3, head=head)
    x = random_inputs(rng, model.spec, num_streams, 3)
    y = stepped(engine_on_gpu(model), x)
    assert np.max(np.abs(y - ReferenceModel(model).steps(x))) < KERNEL


@pytest.mark.slow
def test_the_shapes_of_a_real_gpu_agree_with_the_reference(rng, monkeypatch):
    monkeypatch.setattr(network, "TILING", REAL)
    model = random_model(rng, layers=[("lstm", 2)], inputs=1, outputs=1)
    x = random_inputs(rng, model.spec, 2, 1)
    expected = ReferenceModel(model).steps(x)
    for wide_from in (1, 100):
        y = stepped(engine_on_gpu(model, wide_from=wide_from), x)
        assert np.max(np.abs(y - expected)) < KERNEL


def test_transforms_agree_with_the_reference(rng):
    outputs = [OutputSpec("plain"), OutputSpec("scaled", center=3.0, scale=2.5)]
    outputs += [
        OutputSpec(f"next {item.name}", scale=0.5, difference_of=item.name)
        for item in EVERY_KIND_OF_INPUT
        if item.difference
    ]
    model = random_model(rng, layers=[("gru", 3)], inputs=EVERY_KIND_OF_INPUT, outputs=outputs)
    x = random_inputs(rng, model.spec, 3, 6)
    y = stepped(engine_on_gpu(model), x)
    np.testing.assert_allclose(y, ReferenceModel(model).steps(x), rtol=1e-6, atol=3e-6)


def test_tokens_agree_with_the_reference(rng):
    token = InputSpec("word", kind="token", num_categories=11, embedding_size=5)
    model = random_model(rng, layers=[("lstm", 3)], inputs=[token], outputs=11, head="softmax")
    x = random_inputs(rng, model.spec, 3, 4)
    y = stepped(engine_on_gpu(model), x)
    assert np.max(np.abs(y - ReferenceModel(model).steps(x))) < KERNEL


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "head"),
    [([("lstm", 17)], "identity"), ([("gru", 18), ("rnn_tanh", 3), ("rnn_relu", 5)], "sigmoid")],
)
def test_the_bits_are_those_of_the_cpu(rng, exact_fma, layers, head):
    model = random_model(rng, layers=layers, inputs=5, outputs=3, head=head)
    x = random_inputs(rng, model.spec, 3, 3)
    assert_same_bits(stepped(engine_on_gpu(model), x), stepped(Engine(model, max_streams=4), x))


@pytest.mark.slow
@pytest.mark.parametrize("names", [sorted(FORMS)[:4], sorted(FORMS)[4:8], sorted(FORMS)[8:]])
def test_the_bits_of_other_forms_are_those_of_the_cpu(rng, exact_fma, names):
    """Each above a layer of another, so that all but the first read what a form has written."""
    layers = [form_of(name, 5) for name in names]
    model = random_model(rng, layers=layers, inputs=3, outputs=2)
    x = random_inputs(rng, model.spec, 2, 3)
    gpu, cpu = engine_on_gpu(model), Engine(model, max_streams=16)
    y = stepped(gpu, x)
    assert np.ptp(y) > 0.01
    assert_same_bits(y, stepped(cpu, x))
    assert_same_bits(*(each._device.read_rows(np.arange(2)) for each in (gpu, cpu)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "head"),
    [
        ([("lstm", 5)], "tanh"),
        ([("gru", 17), ("rnn_relu", 3)], None),
        ([form_of("lstm_norm_projected", 5), form_of("gru_reset_before_hard", 3)], "identity"),
    ],
)
def test_int8_weights_give_the_bits_of_the_cpu(rng, exact_fma, monkeypatch, layers, head):
    """In steps, and in chunks of one launch; not those of float32."""
    model = random_model(rng, layers=layers, inputs=3, outputs=2, head=head)
    x = random_inputs(rng, model.spec, 2, 4)
    cpu: Any = Engine(model, max_streams=16, precision="int8")
    gpu = Engine(model, device="cuda", max_streams=16, precision="int8")
    expected = stepped(cpu, x)
    assert not np.array_equal(expected, stepped(Engine(model, max_streams=16), x))
    assert_same_bits(stepped(gpu, x[:, :2]), expected[:, :2])
    assert_same_bits(gpu.steps(1, x[1, 2:]), expected[1, 2:])


@pytest.mark.parametrize(("value", "step", "output"), [(-0.0, 0, -0.0), (1e30, 3, np.inf)])
def test_padding_changes_no_sum(rng, value, step, output):
    """Neither one that is -0, to which a product of zeros adds 0, nor with infinity times 0."""
    model = random_model(rng, layers=[("rnn_relu", 3)], inputs=5, head=None)
    model = Model(model.spec, {k: np.full_like(v, value) for k, v in model.parameters.items()})
    x = np.ones((2, 4, 5), np.float32)
    y = stepped(engine_on_gpu(model), x)
    assert_same_bits(y[:, step], np.full((2, 3), output, np.float32))
    assert_same_bits(y, stepped(Engine(model, max_streams=4), x))


@pytest.mark.slow
@pytest.mark.parametrize("layers", [[("lstm", 5)], [("gru", 5), ("rnn_tanh", 3)]])
def test_bits_do_not_depend_on_the_batch_nor_on_the_tile(rng, layers):
    model = random_model(rng, layers=layers, inputs=3, outputs=2, head="softmax")
    x = random_inputs(rng, model.spec, 9, 2)
    together = stepped(engine_on_gpu(model), x)
    apart = engine_on_gpu(model, wide_from=3)
    rows = apart.rows(range(9))
    order = rng.permutation(9)
    for t in range(2):
        for batch in (order[:1], order[1:8], order[8:]):
            assert_same_bits(apart.batch(rows[batch], x[batch, t]), together[batch, t])


def test_a_chunk_is_its_steps_to_the_bit_wherever_it_is_cut(rng, monkeypatch):
    model = random_model(rng, layers=[("rnn_tanh", 3)], inputs=2, outputs=1)
    x = random_inputs(rng, model.spec, 1, 7)
    singly = stepped(engine_on_gpu(model, wide_from=100), x)[0]
    assert_same_bits(engine_on_gpu(model, wide_from=100).steps("a", x[0]), singly)
    # Batches of few rows and steps, so that both pairs of buffers are used again and again.
    monkeypatch.setattr(engine_cuda, "_MAX_BUFFER_BYTES", 4 * 7)
    monkeypatch.setattr(engine_cuda, "_MIN_ROWS", 2)
    monkeypatch.setattr(engine_cuda, "_MAX_ROWS", 2)
    engine = engine_on_gpu(model, wide_from=100)
    assert len(list(engine._device._batches(1, 7))) > 2
    assert_same_bits(engine.steps("a", x[0]), singly)
    many = random_inputs(rng, model.spec, 5, 1)
    assert len(list(engine._device._batches(5, 1))) == 3
    assert_same_bits(stepped(engine, many), stepped(Engine(model, "cuda", 16), many))


CHUNK_MODELS = {
    "lstm": {"layers": [("lstm", 17)], "head": None},
    "gru": {"layers": [("gru", 5), ("rnn_tanh", 18)], "outputs": 3, "head": "softmax"},
    "transforms": {
        "layers": [("gru", 3), ("lstm", 2)],
        "inputs": EVERY_KIND_OF_INPUT,
        "outputs": [OutputSpec("a", center=2.0), OutputSpec("b", difference_of="masked_change")],
    },
    "tokens": {
        "layers": [("rnn_relu", 3)],
        "inputs": [InputSpec("word", kind="token", num_categories=5, embedding_size=4)],
    },
}


class Counted:
    """A kernel whose launches are counted."""

    def __init__(self, kernel):
        self.kernel, self.num_launches = kernel, 0

    def __getitem__(self, configuration):
        self.num_launches += 1
        return self.kernel[configuration]


def in_chunks(model, num_blocks, num_rows, monkeypatch):
    """Make an engine whose chunks are computed by so many blocks; return its kernel too."""
    kernels = []

    def make(shape):
        kernels.append(Counted(make_persistent_kernel(shape)))
        return kernels[-1]

    monkeypatch.setattr(persistent, "_MAX_ROWS", num_rows)
    monkeypatch.setattr(network, "make_persistent_kernel", make)
    monkeypatch.setattr(network, "num_multiprocessors", lambda: num_blocks)
    engine = engine_on_gpu(model)
    counted = kernels[0]  # of the first pair of buffers
    counted.num_launches = 0
    return engine, counted


@pytest.mark.slow
@pytest.mark.parametrize("options", CHUNK_MODELS.values(), ids=CHUNK_MODELS)
@pytest.mark.parametrize("num_blocks", [1, 3])
def test_a_chunk_in_one_launch_is_its_steps_to_the_bit(rng, monkeypatch, options, num_blocks):
    """However many blocks share its units: 16 or 32, padded, by threes."""
    model = random_model(rng, **options)
    x = random_inputs(rng, model.spec, 1, 7)[0]
    singly = engine_on_gpu(model, wide_from=100)
    engine, kernel = in_chunks(model, num_blocks, 2, monkeypatch)
    for part in (x[:3], x[3:]):
        steps = [singly.steps("a", x_t[None])[0] for x_t in part]
        assert_same_bits(engine.steps("a", part), steps)
    assert kernel.num_launches == 2
    rows = [each._device.read_rows(np.array([0])) for each in (engine, singly)]
    assert_same_bits(*rows)


@pytest.mark.slow
@pytest.mark.parametrize("options", CHUNK_MODELS.values(), ids=CHUNK_MODELS)
@pytest.mark.parametrize("num_rows", [3, 8])
def test_a_chunk_of_a_few_streams_is_that_of_each_to_the_bit(rng, monkeypatch, options, num_rows):
    model = random_model(rng, **options)
    x = random_inputs(rng, model.spec, num_rows, 3)
    singly = engine_on_gpu(model, wide_from=100)
    expected = stepped(singly, x)
    engine, kernel = in_chunks(model, 2, num_rows, monkeypatch)
    rows = engine.rows(range(num_rows))
    y = np.empty((num_rows * 3, model.spec.output_size), np.float32)
    flat = np.ascontiguousarray(x.reshape(num_rows * 3, -1)).astype(engine._form.dtype)
    assert engine._device.advance(rows, flat, y, 3) == 0
    assert kernel.num_launches == 1
    assert_same_bits(y.reshape(expected.shape), expected)
    rows = [each._device.read_rows(np.arange(num_rows)) for each in (engine, singly)]
    assert_same_bits(*rows)


def test_what_one_layer_leaves_in_a_chunk_reaches_no_other(rng, monkeypatch):
    """Infinity is left behind the vectors of a smaller layer; times a weight 0 it would be NaN."""
    model = random_model(rng, layers=[("rnn_relu", 9), ("rnn_relu", 3)], inputs=5, head=None)
    model = Model(model.spec, {k: np.full_like(v, 1e30) for k, v in model.parameters.items()})
    engine, kernel = in_chunks(model, 2, 1, monkeypatch)
    assert np.isinf(engine.steps("a", np.ones((4, 5), np.float32))[1:]).all()
    assert kernel.num_launches == 1


def test_numba_s_own_simulator_has_what_the_kernels_call(monkeypatch):
    """Whoever tries it by hand has no turns: `cuda.nanosleep` and `cuda.syncwarp` are not there."""
    monkeypatch.setattr("numba.cuda.simulator.kernel.FakeCUDAKernel.__call__", ONE_BY_ONE)

    @support.kernel(1)
    def kernel(words, out):
        ptx.publish(words, 1, 7, 1.5)
        ptx._meet_the_warp()
        tag, value = ptx.peek(words, 1)
        out[0] = tag + value

    words, out = cuda.to_device(np.zeros(2, np.int64)), cuda.to_device(np.zeros(1, np.float32))
    kernel[1, 1](words, out)
    assert out.copy_to_host()[0] == 8.5


def test_shared_memory_bounds_the_streams_of_a_chunk(rng):
    model = random_model(rng, layers=[("lstm", 512)], inputs=64, outputs=1)
    plan = GpuPlan(model)
    size = persistent_shape(
        plan, 132, 47 << 10, 128
    )  # an H100 or H200 that gives no more than any other
    assert size is not None
    assert (size.num_blocks, size.max_rows) == (128, 2)
    assert size.shared_bytes <= 47 << 10
    whole = persistent_shape(plan, 132, 227 << 10, 128)
    assert whole is not None
    assert whole.max_rows == 8
    assert persistent_shape(plan, 100, 47 << 10, 128) is None


def test_a_streams_state_moves_between_devices(rng):
    model = random_model(
        rng,
        layers=[("lstm", 3), ("gru", 2)],
        inputs=[InputSpec("a", difference=True), InputSpec("b")],
    )
    x = random_inputs(rng, model.spec, 1, 6)[0]
    expected = ReferenceModel(model).steps(x)
    cpu, gpu = Engine(model, max_streams=3), engine_on_gpu(model)
    y = [cpu.steps("s", x[:2])]
    gpu.rows(["other"])
    with pytest.raises(RecordError, match=f"'cpu-.*; here it is '{support.arithmetic('float32')}'"):
        gpu.import_state("s", cpu.export_state("s"))
    gpu.import_state("s", cpu.export_state("s"), any_arithmetic=True)
    y.append(gpu.steps("s", x[2:4]))
    cpu.close("s")
    cpu.import_state("s", gpu.export_state("s"), any_arithmetic=True)
    y.append(cpu.steps("s", x[4:]))
    assert np.max(np.abs(np.concatenate(y) - expected)) < KERNEL


@pytest.mark.slow
def test_streams_of_any_age_share_a_batch_and_leave_it_as_on_the_cpu(rng, exact_fma):
    """Each has its newest h in a half of its own, of which a record shows nothing."""
    model = random_model(rng, layers=[("lstm", 3), ("gru", 2)], inputs=2, head=None)
    gpu, cpu = engine_on_gpu(model), Engine(model, max_streams=16)
    rows, x = gpu.rows(range(4)), random_inputs(rng, model.spec, 4, 6)
    np.testing.assert_array_equal(rows, cpu.rows(range(4)))
    for t, batch in enumerate(([0], [0, 1], [2, 1, 0], [3, 0], [0, 1, 2, 3], [1, 3])):
        y = [each.batch(rows[batch], x[batch, t]) for each in (gpu, cpu)]
        assert_same_bits(*y)
        if t == 3:
            for each in (gpu, cpu):
                each.close(2)
                each.import_state(2, each.export_state(1))
                each.reset(3)
                rows = each.rows(range(4))
    assert_same_bits(*(each._device.read_rows(np.arange(4)) for each in (gpu, cpu)))


def test_a_nan_in_the_state_stays_in_its_own_stream(rng):
    model = random_model(rng, layers=[("lstm", 3)], inputs=2, head=None)
    engine = engine_on_gpu(model)
    x = random_inputs(rng, model.spec, 3, 1)
    clean = stepped(engine_on_gpu(model), x)
    engine.rows(range(3))
    row = engine._device.read_rows(np.array([1]))
    row[0, 1] = np.nan
    engine._device.write_rows(np.array([1]), row)
    y = stepped(engine, x)
    assert np.isnan(y[1]).all()
    assert_same_bits(y[[0, 2]], clean[[0, 2]])


def test_slots_of_closed_streams_are_reused(rng):
    model = random_model(rng, layers=[("gru", 2)], inputs=2)
    engine = engine_on_gpu(model, max_streams=2)
    x = random_inputs(rng, model.spec, 1, 2)[0]
    first = engine.step({"a": x[0]})["a"]
    engine.step({"b": x[1]})
    with pytest.raises(KeyError, match="no room"):
        engine.step({"c": x[0]})
    engine.close("a")
    assert_same_bits(engine.step({"c": x[0]})["c"], first)  # the slot starts anew
    engine.reset("b")
    assert_same_bits(engine.step({"b": x[0]})["b"], first)
    with pytest.raises(ValueError, match="nan"):
        engine.step({"b": [np.nan, 0]})
    assert engine.batch(engine.rows([]), np.empty((0, 2))).shape == (0, 2)


def test_too_many_streams_are_refused_with_how_many_would_fit(rng, monkeypatch):
    from numba.cuda.simulator.cudadrv import devices

    model = random_model(rng, layers=[("lstm", 64)])
    monkeypatch.setattr(
        devices.FakeCUDAContext,
        "get_memory_info",
        lambda self: devices._MemoryInfo(free=1 << 30, total=1 << 30),
    )
    with pytest.raises(DeviceError, match=r"10,000,000 streams of 768 bytes need 7\.2 GiB") as info:
        Engine(model, device="cuda", max_streams=10_000_000)
    fitting = int(str(info.value).rsplit("=", 1)[1])
    assert 1_000_000 < fitting < (1 << 30) // 768
    engine_cuda.CudaDevice(model, np.zeros((101, 2), np.int64))._check_room(fitting, 0)


@pytest.mark.parametrize("which", [0, 1])
def test_a_gpu_that_failed_is_not_used_again(rng, monkeypatch, which):
    """Numba's copies raise one kind of error, the launches of cuda-core another."""
    model = random_model(rng, layers=[("gru", 2)], inputs=2)
    engine = engine_on_gpu(model)
    kind: Any = support.gpu_errors()[which]
    failure = kind("CUDA_ERROR_ILLEGAL_ADDRESS")

    def fail(*args):
        raise failure

    monkeypatch.setattr(transfer.Transfer, "begin", fail)
    with pytest.raises(DeviceError, match="ILLEGAL_ADDRESS"):
        engine.step({"a": [0.0, 0.0]})
    monkeypatch.undo()
    with pytest.raises(DeviceError, match="restore their states"):
        engine.step({"a": [0.0, 0.0]})
