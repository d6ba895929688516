"""The staged path against the float64 reference, and bit for bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamrnn import Engine, Model
from streamrnn.engine.cpu import CpuDevice
from streamrnn.errors import DeviceError
from streamrnn.kernels.cpu.pack import aligned_floats
from streamrnn.kernels.cpu.plan import MAX_BATCH_ROWS
from streamrnn.kernels.cpu.staged.passes import add_gated, blend, normalise
from streamrnn.kernels.cuda.plan import GpuPlan
from streamrnn.kernels.gates import is_staged, padded
from streamrnn.kernels.precisions import DEVICE_PRECISIONS
from streamrnn.model.spec import CELLS, LayerSpec, OutputSpec
from streamrnn.reference.model import ReferenceModel
from tests.support.engines import stepped
from tests.support.forms import FORMS, form_of
from tests.support.models import EVERY_KIND_OF_INPUT, random_inputs, random_model
from tests.support.precision import SIGMOID_FACTOR, rounded_to_bfloat16
from tests.tolerances import KERNEL, kernel_limit

SIZES = [1, 3, 17, 50, 100, 127]
QUIET_NAN = np.frombuffer(b"\x01\x00\xc0\x7f", np.float32)[0]

forms = st.builds(form_of, st.sampled_from(sorted(FORMS)), st.sampled_from([1, 2, 15, 16, 17, 40]))
layers_of_any_kind = st.one_of(
    forms, st.builds(LayerSpec, st.sampled_from(sorted(CELLS)), st.integers(1, 40))
)
# At least one staged layer, and its neighbours of any kind.
stacks = st.tuples(
    st.lists(layers_of_any_kind, max_size=1), forms, st.lists(layers_of_any_kind, max_size=1)
).map(lambda parts: [*parts[0], parts[1], *parts[2]])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FORMS)
def test_agrees_with_the_reference_after_1000_steps(rng, name, size):
    model = random_model(rng, [form_of(name, size)], inputs=5, outputs=3)
    x = random_inputs(rng, model.spec, 2, 1000)
    expected = ReferenceModel(model).steps(x)
    engine = Engine(model, max_streams=4)
    y = np.stack([engine.steps(b, x[b]) for b in range(2)])
    assert np.abs(y - expected).max() < KERNEL


@settings(max_examples=40)
@example([form_of("lstm_norm", 2)], "identity", 12, 410)  # two sums that are nearly equal
@given(stacks, st.sampled_from([None, "identity"]), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_agrees_with_the_reference_on_random_stacks(layers, head, num_streams, seed):
    rng = np.random.default_rng(seed)
    model = random_model(rng, layers, inputs=5, outputs=3, head=head)
    x = random_inputs(rng, model.spec, num_streams, 5)
    y = stepped(Engine(model, max_streams=32), x, [np.arange(num_streams)])
    assert np.abs(y - ReferenceModel(model).steps(x)).max() < kernel_limit(model, x)


@settings(max_examples=40)
@given(stacks, st.integers(1, 2 * MAX_BATCH_ROWS + 5), st.data())
def test_bits_do_not_depend_on_the_other_streams_of_the_batch(layers, num_streams, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    model = random_model(rng, layers, inputs=5, outputs=3)
    x = random_inputs(rng, model.spec, num_streams, 3)
    order = rng.permutation(num_streams)
    cuts = sorted(data.draw(st.sets(st.integers(1, num_streams), max_size=9)))
    batches = [batch for batch in np.split(order, cuts) if len(batch)]
    together = stepped(Engine(model, max_streams=256), x, [np.arange(num_streams)])
    apart = stepped(Engine(model, max_streams=256), x, batches)
    np.testing.assert_array_equal(apart.view(np.uint32), together.view(np.uint32))


@settings(max_examples=40)
@given(
    stacks,
    st.sampled_from([None, "identity"]),
    st.one_of(st.just(5), st.just(EVERY_KIND_OF_INPUT)),
    st.integers(1, MAX_BATCH_ROWS + 9),
    st.data(),
)
def test_a_chunk_is_its_steps_to_the_bit(layers, head, inputs, num_steps, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    outputs: Any = 3
    if inputs != 5 and head:
        outputs = [OutputSpec("a", center=2.0), OutputSpec("b", difference_of="held_change")]
    model = random_model(rng, layers, inputs=inputs, outputs=outputs, head=head)
    x = random_inputs(rng, model.spec, 1, num_steps)[0]
    cut = data.draw(st.integers(0, num_steps))
    engine = Engine(model, max_streams=4)
    singly = np.stack([engine.step({"a": row})["a"] for row in x])
    chunks = np.concatenate([engine.steps("b", x[:cut]), engine.steps("b", x[cut:])])
    np.testing.assert_array_equal(chunks.view(np.uint32), singly.view(np.uint32))


def quantised(model, precision):
    """Return a model whose weights are what a precision makes of them.

    A row of int8 weights has one scale for what is summed together: x and h of a gate, but not of
    a candidate whose half r scales, nor where each product is normalised.
    """
    (layer,) = model.spec.chain
    slope = {"sigmoid": SIGMOID_FACTOR, "hard_sigmoid_fifth": 1 / 5, "hard_sigmoid_sixth": 1 / 6}
    gates = CELLS[layer.cell].gates
    of_gate = 1.0 if layer.layer_norm else slope[layer.gate_activation]
    is_apart = [layer.layer_norm or (gate == "n" and layer.reset_after) for gate in gates]
    factors, apart = (
        np.repeat(values, layer.hidden_size)[:, None]
        for values in ([1.0 if gate in "gn" else of_gate for gate in gates], is_apart)
    )
    p = {name: value.astype(np.float64) for name, value in model.parameters.items()}
    x, h = p["weight_ih_l0"] * factors, p["weight_hh_l0"] * factors
    scales = [np.abs(matrix).max(axis=1, keepdims=True) / 127 for matrix in (x, h)]
    shared = [np.where(apart, scale, np.maximum(*scales)) for scale in scales]

    def stored(matrix, scale=None):
        if precision == "bfloat16":
            return rounded_to_bfloat16(matrix)
        if scale is None:
            scale = np.abs(matrix).max(axis=1, keepdims=True) / 127
        return np.rint(matrix / scale) * scale

    p["weight_ih_l0"], p["weight_hh_l0"] = (
        stored(matrix, scale) / factors for matrix, scale in zip((x, h), shared, strict=True)
    )
    for name in {"weight_hr_l0", "head.weight"} & set(p):
        p[name] = stored(p[name])
    return Model(model.spec, {name: value.astype(np.float32) for name, value in p.items()})


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", FORMS)
def test_computes_with_rounded_weights_by_the_same_bit_rules(rng, name, precision):
    model = random_model(rng, [form_of(name, 17)], inputs=5, outputs=3)
    x = random_inputs(rng, model.spec, 7, 60)
    engine = Engine(model, max_streams=16, precision=precision)
    y = stepped(engine, x, [np.arange(7)])
    chunks = np.stack([engine.steps(str(b), x[b]) for b in range(7)])
    np.testing.assert_array_equal(chunks.view(np.uint32), y.view(np.uint32))
    assert np.abs(y - ReferenceModel(quantised(model, precision)).steps(x)).max() < KERNEL
    assert KERNEL < np.abs(y - ReferenceModel(model).steps(x)).max() < 0.05


@pytest.mark.parametrize("name", FORMS)
def test_the_last_output_follows_from_the_state(rng, name):
    model = random_model(rng, [form_of(name, 20)], inputs=5, head=None)
    engine = Engine(model, max_streams=2)
    y = engine.steps("a", random_inputs(rng, model.spec, 1, 7)[0])
    h_size = model.spec.chain[0].output_size
    [row] = engine._device.read_rows(np.array([0]))
    np.testing.assert_array_equal(row[:h_size], y[-1])
    assert not row[h_size : padded(h_size)].any(), "padding stays zero"
    assert not row[padded(h_size) + 20 : padded(h_size) + 32].any(), "padding stays zero"


def seen_by_all(layer, state):
    """Say whether a NaN in one unit of a state must reach every unit of the output."""
    return state == 0 or layer.layer_norm or layer.projection_size > 0


@pytest.mark.parametrize("num_streams", [1, 5, 13])
@pytest.mark.parametrize("name", FORMS)
def test_a_nan_in_the_state_stays_in_its_own_stream(rng, name, num_streams):
    layer = form_of(name, 20)
    model = random_model(rng, [layer], inputs=5, head=None)
    x = random_inputs(rng, model.spec, num_streams, 1)[:, 0]
    clean = Engine(model, max_streams=16)
    expected = clean.batch(clean.rows(range(num_streams)), x)
    for state, unit in enumerate((4, 7)[: len(layer.state_sizes)]):
        engine = Engine(model, max_streams=16)
        rows = engine.rows(range(num_streams))
        device: Any = engine._device
        device.slab[0, state * padded(layer.output_size) + unit] = QUIET_NAN
        y = engine.batch(rows, x)
        if seen_by_all(layer, state):
            assert np.isnan(y[0]).all()
        else:
            assert np.flatnonzero(np.isnan(y[0])).tolist() == [unit]
        np.testing.assert_array_equal(y[1:], expected[1:])


@pytest.mark.parametrize("name", FORMS)
def test_a_nan_in_any_gate_comes_out(rng, name):
    layer = form_of(name, 20)
    model = random_model(rng, [layer], inputs=5, head=None)
    for gate in range(len(CELLS[layer.cell].gates)):
        for bias in ("bias_ih_l0", "bias_hh_l0"):
            parameters = {name: value.copy() for name, value in model.parameters.items()}
            parameters[bias][gate * 20 + 3] = np.nan
            engine = Engine(model, max_streams=2)
            # A Model refuses such parameters, so the device is made without one.
            fake: Any = SimpleNamespace(spec=model.spec, parameters=parameters)
            engine._device = CpuDevice(fake, engine._streams.marks)
            is_nan = np.isnan(engine.step({"a": np.ones(5)})["a"])
            reaches_all = (
                layer.projection_size > 0
                or (layer.layer_norm and layer.cell == "lstm" and gate < 3)  # through c's norm
                or (not layer.reset_after and gate == 0)  # through r * h
            )
            if reaches_all:
                assert is_nan.all(), (gate, bias)
            else:
                assert np.flatnonzero(is_nan).tolist() == [3], (gate, bias)


@pytest.mark.parametrize("name", FORMS)
def test_a_large_finite_input_keeps_the_state_finite(rng, name):
    model = random_model(rng, [form_of(name, 20)], inputs=5, head=None)
    engine = Engine(model, max_streams=2)
    for value in (1e30, -1e30, 3e38):
        assert np.isfinite(engine.step({"a": np.full(5, value)})["a"]).all()


def test_a_form_of_a_cell_that_a_gpu_does_not_have_is_refused_by_its_name(rng):
    for name in FORMS:
        layer = form_of(name, 6)
        assert is_staged(layer)
        model = random_model(rng, [("lstm", 4), layer])
        for precision in DEVICE_PRECISIONS["cuda"]:
            assert not GpuPlan(model, precision).is_plain
    for cell in CELLS:
        assert not is_staged(LayerSpec(cell, 6))
    for layer in (
        LayerSpec("lstm", 6, cell_activation="relu"),
        LayerSpec("lstm", 6, output_activation="relu"),
    ):
        model = random_model(rng, [("lstm", 4), layer])
        with pytest.raises(DeviceError, match=r"layer 1 is lstm with relu .* runs on the CPU only"):
            GpuPlan(model)


# --- the passes by themselves ------------------------------------------------------------------


def block(values):
    kept = aligned_floats(padded(len(values)))
    kept[: len(values)] = values
    return kept


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 100, 1000])
@pytest.mark.parametrize(("mean", "spread"), [(0, 1), (-50, 2), (1e6, 1e5), (3, 1e-4), (0, 0)])
def test_normalise(rng, size, mean, spread):
    values, gain, addend = rng.standard_normal((3, size)).astype(np.float32)
    values = (mean + spread * values).astype(np.float32)
    blocks = [block(item) for item in (values, np.ones(size), gain, addend)]
    out = aligned_floats(padded(size))
    v, mask, g, a = (item.ctypes.data for item in blocks)
    normalise(v, size, 4 * padded(size), mask, np.float32(1e-5), g, a, out.ctypes.data)
    exact = values.astype(np.float64)
    deviation = exact - exact.mean()
    scale = 1 / np.sqrt((deviation**2).mean() + 1e-5)
    # The mean is a float32: what it is off by, the deviations are off by, all of them alike.
    allowed = 4e-7 * (np.abs(addend) + np.abs(gain) * (4 + np.abs(exact).max() * scale))
    assert (np.abs(out[:size] - (deviation * scale * gain + addend)) <= allowed).all()
    assert not out[size:].any()


def test_normalise_keeps_large_sums_finite():
    values = block(np.linspace(2e38, 3e38, 40))
    ones, zeros, out = block(np.ones(40)), block(np.zeros(40)), aligned_floats(48)
    addresses = [item.ctypes.data for item in (values, ones, ones, zeros, out)]
    v, mask, gain, addend, target = addresses
    normalise(v, 40, 4 * 48, mask, np.float32(1e-5), gain, addend, target)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("is_hard", [0, 1])
def test_gates_are_exact_at_their_ends(is_hard):
    """A closed gate lets nothing through, an open one everything, and a NaN comes out."""
    closed, open_ = (-1.0, 2.0) if is_hard else (118.0, -150.0)
    t = block([closed, open_, np.nan, 1e30, -1e30])
    factor, addend = block([3.0] * 5), block([0.5] * 5)
    out = aligned_floats(16)
    add_gated(is_hard, *(item.ctypes.data for item in (t, factor, addend, out)), 64)
    expected = [0.5, 3.5, np.nan, *((3.5, 0.5) if is_hard else (0.5, 3.5))]
    np.testing.assert_array_equal(out[:5], np.array(expected, np.float32))
    h = block([0.25] * 5)
    blend(is_hard, 1, *(item.ctypes.data for item in (t, addend, h, out)), 64)
    n = np.float32(np.tanh(0.5))
    assert out[[0, 1, 3, 4]] == pytest.approx(
        [n, 0.25, 0.25, n] if is_hard else [n, 0.25, n, 0.25], abs=1e-7
    )
    assert np.isnan(out[2])
