"""Weights that come from memory: in blocks, they give the bits that whole panels give."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.kernels.cpu import program as cpu_program
from streamrnn.kernels.cpu.program import Program
from streamrnn.kernels.cpu.tiles import MAX_ROWS
from streamrnn.kernels.cpu.tiling import cover_address
from streamrnn.kernels.precisions import PRECISIONS
from streamrnn_bench.step.cpu import Streams
from tests.support.engines import stepped
from tests.support.models import random_inputs, random_model

LAYERS = [("lstm", 37), ("gru", 70), ("rnn_tanh", 90)]
NUM_STEPS = 3


def outputs_and_rows(model, x, precision, block_bytes):
    """Step all streams in the loop; with ``block_bytes`` in blocks of so many."""
    streams = Streams(model, len(x), precision)
    if block_bytes:
        product = streams.program.plan["product"]
        product["block_cover"] = cover_address(PRECISIONS[precision], in_blocks=True)
        product["block_bytes"] = block_bytes
    outputs = []
    for t in range(NUM_STEPS):
        streams.x[:] = x[:, t]
        streams.run(1)
        outputs.append(streams.y.copy())
    return np.array(outputs).view(np.int32), streams.rows.view(np.int32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_blocks_change_no_bit(rng, precision):
    """One tile and many, of equal and of unequal rows; blocks within x, within h and across."""
    model = random_model(rng, layers=LAYERS, inputs=50, head="identity", outputs=70)
    for num_streams in (MAX_ROWS, MAX_ROWS + 2, 3 * MAX_ROWS + 1, 8 * MAX_ROWS):
        x = random_inputs(rng, model.spec, num_streams, NUM_STEPS)
        whole_y, whole_rows = outputs_and_rows(model, x, precision, 0)
        for block_bytes in (64, 1000, 1 << 20):
            y, rows = outputs_and_rows(model, x, precision, block_bytes)
            assert np.array_equal(y, whole_y), (num_streams, block_bytes)
            assert np.array_equal(rows, whole_rows), (num_streams, block_bytes)


def test_a_model_that_no_cache_holds_is_covered_in_blocks(rng, monkeypatch):
    """Its streams' outputs depend neither on their number nor on chunks."""
    monkeypatch.setattr(cpu_program, "_CACHED_BYTES", 1 << 10)
    monkeypatch.setattr(cpu_program, "_WEIGHT_BLOCK_BYTES", 1000)
    model = random_model(rng, layers=LAYERS, inputs=50, head="identity", outputs=70)
    assert Program(model).plan["product"]["block_cover"]
    x = random_inputs(rng, model.spec, 13, 8)
    together = stepped(Engine(model, max_streams=13), x, [np.arange(13)])
    alone = Engine(model, max_streams=13)
    for index, inputs in enumerate(x):
        assert np.array_equal(alone.steps(index, inputs), together[index])


def test_a_small_model_is_not(rng):
    product = Program(random_model(rng, layers=LAYERS, inputs=5)).plan["product"]
    assert not product["block_cover"]
