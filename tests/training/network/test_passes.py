"""The compiled way through a network and back: sizes, threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest

from streamrnn.gradients.threads import share_rows, use_threads
from streamrnn.model.model import Model
from streamrnn.model.spec import CELLS
from streamrnn.reference.model import ReferenceModel
from streamrnn.training.network.network import Chunk
from tests.tolerances import REFERENCE_FLOAT64
from tests.training.network.drawn import gradient_of, make_network

# H, B, T, I, O: below, at and above a vector's and a tile's size, and one of each.
SIZES = [
    (1, 1, 1, 1, 1),
    (3, 7, 2, 2, 1),
    (17, 33, 5, 1, 3),
    (16, 6, 2, 17, 16),
    (33, 2, 100, 15, 17),
    (48, 13, 3, 16, 2),
    (65, 5, 4, 33, 40),
]
# Of a gradient in float32: sums of up to some thousand terms, each off by some 2^-24, against the
# norm of all.
FLOAT32 = 3e-6


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_float64_is_the_reference_and_its_differences(cell, sizes):
    network, chunk, target = make_network([cell], sizes)
    network.flat[:] = network.flat.astype(np.float32)  # as a model's are
    model = Model(network.spec, {k: v.astype(np.float32) for k, v in network.parameters.items()})
    expected = ReferenceModel(model).steps(chunk.features.swapaxes(0, 1)).swapaxes(0, 1)
    y, _ = network.outputs(chunk, network.initial_state(sizes[1]))
    np.testing.assert_allclose(y, expected, rtol=0, atol=REFERENCE_FLOAT64)
    _, gradient = gradient_of(network, chunk, target)
    rng = np.random.default_rng(4)
    direction = rng.normal(size=gradient.shape) * np.sign(gradient)
    direction /= np.linalg.norm(direction)
    start, losses = network.flat.copy(), []
    for step in (1e-6, -1e-6):
        network.flat[:] = start + step * direction
        losses.append(gradient_of(network, chunk, target)[0])
    change = (losses[0] - losses[1]) / 2e-6
    assert change == pytest.approx(gradient @ direction, rel=1e-6)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_float32_is_float64_but_for_rounding(cell, sizes):
    results = [gradient_of(*make_network([cell], sizes, t)) for t in (np.float32, np.float64)]
    (loss, gradient), (exact_loss, exact) = results
    assert loss == pytest.approx(exact_loss, rel=1e-6)
    assert np.linalg.norm(gradient - exact) <= FLOAT32 * np.linalg.norm(exact)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [(17, 33, 5, 3, 2), (8, 1, 9, 1, 1), (40, 5, 3, 7, 20)])
def test_threads_change_no_bit(dtype, sizes):
    network, chunk, target = make_network(["lstm", "gru", "rnn_tanh", "rnn_relu"], sizes, dtype)
    loss, alone = gradient_of(network, chunk, target)
    for num_threads in (2, 3):
        with use_threads(num_threads):
            shared_loss, shared = gradient_of(network, chunk, target)
        assert shared_loss == loss
        np.testing.assert_array_equal(shared, alone)


@pytest.mark.parametrize(("num_threads", "num_rows"), [(1, 5), (2, 5), (3, 7), (4, 2), (3, 0)])
def test_every_row_is_one_threads(num_threads, num_rows):
    parts = []

    def take(first, end):
        parts.append((first, end))
        return 0

    with use_threads(num_threads):
        share_rows(take, num_rows)
    rows = sorted(row for first, end in parts for row in range(first, end))
    assert rows == list(range(num_rows))
    assert len(parts) == min(num_threads, num_rows)


def test_a_training_that_ends_first_leaves_the_threads_of_one_beside_it():
    ours_are_there, theirs_are_there, has_ended = Event(), Event(), Event()

    def end_first():
        with use_threads(2):
            ours_are_there.set()
            theirs_are_there.wait(60)
        has_ended.set()

    with ThreadPoolExecutor(1) as beside:
        first = beside.submit(end_first)
        assert ours_are_there.wait(60)
        with use_threads(2):
            theirs_are_there.set()
            assert has_ended.wait(60)
            parts: list[tuple[int, int]] = []

            def take(first, end):
                parts.append((first, end))
                return 0

            share_rows(take, 8)
        first.result()
    assert sorted(parts) == [(0, 4), (4, 8)]


def test_a_chunk_after_a_longer_one_of_other_rows_is_as_if_alone():
    network, chunk, target = make_network(["gru", "lstm"], (5, 9, 6, 2, 1))
    few = Chunk(chunk.features[:2, :4].copy(), {})
    _, alone = gradient_of(network, few, target[:2, :4])
    gradient_of(network, chunk, target)
    _, again = gradient_of(network, few, target[:2, :4])
    np.testing.assert_array_equal(again, alone)
