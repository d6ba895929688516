"""Products on tensor cores, in the simulator."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'streamrnn[cuda]'")

from streamrnn import Engine
from streamrnn.errors import InputError
from streamrnn.kernels.cuda import compiler as support
from streamrnn.kernels.cuda import network
from streamrnn.kernels.cuda.launches import launches_of_batch
from streamrnn.kernels.cuda.ptx import pack_words
from streamrnn.kernels.cuda.tensor_cores import TensorShape
from streamrnn.reference.model import ReferenceModel
from tests.cuda.grid import launch
from tests.support.engines import assert_same_bits, stepped
from tests.support.forms import form_of
from tests.support.models import EVERY_KIND_OF_INPUT, random_inputs, random_model
from tests.tolerances import TENSOR

pytestmark = pytest.mark.skipif(not support.SIMULATED, reason="runs in the simulator")

PRECISIONS = ("tf32", "bfloat16")
# The shapes of the real tiling made small: two products a warp along the streams, and two warps.
WIDE, NARROW = TensorShape(1, 1, 2, 4), TensorShape(2, 1, 1, 4, 3)


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    monkeypatch.setattr("numba.cuda.simulator.kernel.FakeCUDAKernel.__call__", launch)
    monkeypatch.setattr(network, "TENSOR_TILING", network.Tiling((WIDE, NARROW), 8))


def engine_of(model, precision, wide_from=1):
    tiling = dataclasses.replace(network.TENSOR_TILING, min_blocks=wide_from)
    with mock.patch.object(network, "TENSOR_TILING", tiling):
        engine: Any = Engine(model, device="cuda", max_streams=32, precision=precision)
    return engine


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "head", "num_streams", "precision"),
    [
        ([("lstm", 19)], "identity", 18, "bfloat16"),
        ([("gru", 17), ("rnn_tanh", 3)], "softmax", 2, "bfloat16"),
        ([("gru", 35)], None, 1, "tf32"),
    ],
)
def test_agrees_with_the_reference(rng, layers, head, num_streams, precision):
    outputs = layers[-1][1] if head is None else 3
    model = random_model(rng, layers=layers, inputs=5, outputs=outputs, head=head)
    x = random_inputs(rng, model.spec, num_streams, 2)
    y = stepped(engine_of(model, precision), x)
    error = np.max(np.abs(y - ReferenceModel(model).steps(x)))
    assert TENSOR[precision] / 200 < error < TENSOR[precision]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "names"),
    [
        ("tf32", ("lstm_peepholes_projected", "gru_hard")),
        ("bfloat16", ("gru_reset_before_hard", "gru_norm")),
    ],
)
def test_other_forms_agree_with_the_reference(rng, precision, names):
    model = random_model(rng, layers=[form_of(name, 5) for name in names], inputs=3, outputs=2)
    x = random_inputs(rng, model.spec, 2, 2)
    y = stepped(engine_of(model, precision), x)
    error = np.max(np.abs(y - ReferenceModel(model).steps(x)))
    assert TENSOR[precision] / 1000 < error < TENSOR[precision]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_bits_do_not_depend_on_the_batch_nor_on_the_tile_nor_on_chunks(rng, precision):
    model = random_model(rng, layers=[("lstm", 9), ("gru", 3)], inputs=3, outputs=2)
    x = random_inputs(rng, model.spec, 18, 2)
    together = stepped(engine_of(model, precision), x)
    apart = engine_of(model, precision, wide_from=3)  # narrow: two blocks of units, one of rows
    launches = apart._device._transfers[0]._launches
    taken = [launch.threads for launch, *_ in launches_of_batch(launches, 17, 1)]
    assert NARROW.num_threads in taken
    assert WIDE.num_threads not in taken
    rows = apart.rows(range(18))
    assert_same_bits(apart.batch(rows[17:], x[17:, 0]), together[17:, 0])
    assert_same_bits(apart.batch(rows[:17], x[:17, 0]), together[:17, 0])
    assert_same_bits(apart.steps(3, x[3, 1:]), together[3, 1:])
    assert_same_bits(engine_of(model, precision).steps("a", x[5]), together[5])


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_transforms_are_not_rounded(rng, precision):
    """Nor embeddings: only what is multiplied is."""
    model = random_model(rng, layers=[("gru", 3)], inputs=EVERY_KIND_OF_INPUT, outputs=2)
    x = random_inputs(rng, model.spec, 3, 4)
    y = stepped(engine_of(model, precision), x)
    expected = ReferenceModel(model).steps(x)
    np.testing.assert_allclose(y, expected, atol=10 * TENSOR[precision])


def test_numbers_are_rounded_to_the_nearest():
    values = np.array([1, 1 + 2**-11, 1 + 2**-11 - 2**-20, -1 - 2**-11, 3 * 2**-12], np.float32)
    expected = np.array([1, 1 + 2**-10, 1, -1 - 2**-10, 3 * 2**-12], np.float32)
    assert_same_bits(pack_words(values, "tf32"), expected)
    pairs = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8 - 2**-20], np.float32)
    words = pack_words(pairs, "bfloat16").view(np.uint16)
    halves = np.array([1, 1, 1 + 2**-6, -1 - 2**-7], np.float32).view(np.uint32) >> 16
    assert words.tolist() == halves.tolist()


@pytest.mark.slow
def test_a_nan_stays_in_its_own_stream(rng):
    model = random_model(rng, layers=[("lstm", 3)], inputs=2, head=None)
    x = random_inputs(rng, model.spec, 3, 1)
    clean = stepped(engine_of(model, "tf32"), x)
    engine = engine_of(model, "tf32")
    engine.rows(range(3))
    row = engine._device.read_rows(np.array([1]))
    row[0, 1] = np.nan
    engine._device.write_rows(np.array([1]), row)
    y = stepped(engine, x)
    assert np.isnan(y[1]).all()
    assert_same_bits(y[[0, 2]], clean[[0, 2]])


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_lies_behind_h_in_its_row_is_not_multiplied(rng, precision):
    """A stage of bfloat16 is 32 k, and h may end after 16 of them: behind it comes c."""
    model = random_model(rng, layers=[("lstm", 3)], inputs=2, head=None)
    engine = engine_of(model, precision)
    engine.rows(range(2))
    row = engine._device.read_rows(np.array([1]))
    row[0, 16:19] = np.inf
    engine._device.write_rows(np.array([1]), row)
    y = stepped(engine, random_inputs(rng, model.spec, 2, 2))
    assert np.isfinite(y).all()


def test_what_a_device_does_not_have_is_named(rng):
    model = random_model(rng)
    with pytest.raises(InputError, match=r"'int4'; on device 'cuda' .* float32, tf32, bfloat16"):
        Engine(model, device="cuda", precision="int4")
    with pytest.raises(InputError, match=r"'tf32'; on device 'cpu' .* float32, bfloat16, int8"):
        Engine(model, precision="tf32")
    with pytest.raises(InputError, match="device is 'tpu'; it must be 'cpu' or 'cuda'"):
        Engine(model, device="tpu")
