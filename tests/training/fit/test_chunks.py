"""What is trained at once: batches, chunks, and which of them make an update."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn.gradients.recurrent import Recurrent
from streamrnn.model.spec import HeadSpec, InputSpec, LayerSpec, ModelSpec, OutputSpec
from streamrnn.training import TrainingConfig
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.evaluate import mean_loss
from streamrnn.training.fit.chunks import Segment, cut_chunks, plan_epoch
from streamrnn.training.fit.loop import fit
from streamrnn.training.fit.optimisers import Adam
from streamrnn.training.network.network import Chunk, Network, initial_parameters
from tests.support.tables import write_csv


@given(st.integers(1, 300), st.integers(1, 120), st.integers(0, 99))
def test_chunks_cover_a_batch_and_none_is_long_or_very_short(num_steps, length, seed):
    chunks = cut_chunks(num_steps, length, np.random.default_rng(seed))
    assert [row for start, stop in chunks for row in range(start, stop)] == list(range(num_steps))
    sizes = [stop - start for start, stop in chunks]
    assert max(sizes) <= length
    assert len(chunks) == 1 or 2 * min(sizes) >= length


@given(st.integers(1, 300), st.integers(0, 50), st.integers(0, 99))
def test_truncation_no_shorter_than_the_batch_is_one_chunk(num_steps, more, seed):
    rng = np.random.default_rng(seed)
    assert cut_chunks(num_steps, num_steps + more, rng) == [(0, num_steps)]


def segments_of(*lengths):
    return [Segment(k, 0, length, -1) for k, length in enumerate(lengths)]


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ((101, 100, 1), [3]),  # one row of one step is no update
        ((50,) * 5, [2, 3]),
        ((50,) * 4, [2, 2]),
        ((90, 90, 80, 80, 5, 5), [2, 4]),
    ],
)
def test_what_is_left_over_joins_another_batch(lengths, sizes):
    batch_size = 2 if lengths != (50,) * 5 else 3
    for seed in range(5):
        pieces = plan_epoch(segments_of(*lengths), 1000, batch_size, np.random.default_rng(seed))
        assert sorted(len(piece.rows) for piece in pieces) == sizes
        assert sorted(k for piece in pieces for k in piece.rows) == list(range(len(lengths)))


def spy_on_losses(monkeypatch):
    """Return the steps and the number of targets of every chunk that the loss is asked of."""
    seen = []
    original = Network.loss

    def spy(self, chunk, target, *rest):
        value, after = original(self, chunk, target, *rest)
        seen.append((len(target), int(np.count_nonzero(~np.isnan(target))), value))
        return value, after

    monkeypatch.setattr(Network, "loss", spy)
    return seen


def dataset_of(path, **options):
    return make_dataset(TrainingConfig(path=str(path), **options), read_table(path))


@pytest.mark.parametrize(("num_steps", "more"), [(120, 0), (120, 1), (240, 0), (240, 300)])
@pytest.mark.parametrize("batch_size", [0, 8])
def test_truncation_no_shorter_than_the_sequences_is_full_bptt(
    tmp_path, monkeypatch, num_steps, more, batch_size
):
    rng = np.random.default_rng(0)
    path = tmp_path / "sequences.npz"
    shape = (8, num_steps * 5 // 3, 1)
    x, y = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    np.savez(path, X=x, y=y)
    dataset = dataset_of(
        path, truncation_steps=num_steps + more, epochs=3, batch_size=batch_size, layers=("gru:4",)
    )
    seen = spy_on_losses(monkeypatch)
    fit(dataset)
    assert {steps for steps, _, _ in seen} == {num_steps}


@pytest.fixture
def sparse(tmp_path):
    """Targets in 5 of 47 rows, which chunks of 10 rows mostly miss."""
    rng = np.random.default_rng(0)
    y = ["" if t % 47 < 42 else f"{rng.normal():.3f}" for t in range(2000)]
    return dataset_of(
        write_csv(tmp_path, x=rng.normal(size=2000), y=y),
        predict=("y",),
        inputs=("x",),
        horizon=0,
        batch_size=1,
        truncation_steps=10,
        epochs=2,
        learning_rate=1e-9,
        layers=("gru:4",),
    )


def test_the_train_loss_is_the_mean_over_targets(sparse, monkeypatch):
    seen = spy_on_losses(monkeypatch)
    found = fit(sparse)
    first = seen[: found.history[0].num_updates]
    assert sum(num for _, num, _ in first) == 125
    assert len({num for _, num, _ in first}) > 1
    expected = sum(loss * num for _, num, loss in first) / 125
    assert found.history[0].train == pytest.approx(expected, rel=1e-6)
    assert found.history[0].train == pytest.approx(
        mean_loss(found.network, sparse, "train"), rel=0.02
    )


def test_a_chunk_without_targets_makes_no_update_but_carries_the_state(sparse, monkeypatch):
    seen = spy_on_losses(monkeypatch)
    found = fit(sparse)
    assert all(num for _, num, _ in seen)
    assert len(seen) == found.num_updates
    # Of 25 places in 1200 rows; an update for each chunk would be about 120 an epoch.
    assert found.num_updates <= 2 * 50
    # Weights that hardly move: what the later rows saw is the state of one run over all of them.
    assert found.history[1].train == pytest.approx(found.history[0].train, rel=1e-3)


@pytest.mark.parametrize("reads", [(), ("input", "head[t-1]")])
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_a_gradient_that_fades_passes_through_no_subnormal_numbers(cell, reads):
    rng = np.random.default_rng(0)
    spec = ModelSpec(
        inputs=(InputSpec("x"),),
        layers=(LayerSpec(cell, 16, reads=reads),),
        outputs=(OutputSpec("y"),),
        head=HeadSpec("identity"),
    )
    parameters = initial_parameters(spec, rng)
    parameters["weight_hh_l0"] *= 0.4
    parameters["weight_ih_l0"][:, 1:] *= 0.4
    x = 0.1 * rng.normal(size=(800, 3, 1))
    y = np.full((800, 3, 1), np.nan)
    y[-1] = 1.0
    networks = [Network(spec, parameters, dtype) for dtype in (np.float32, np.float64)]
    for network in networks:
        chunk = Chunk(x.astype(network.dtype), {})
        network.loss(chunk, y.astype(network.dtype), network.initial_state(3), "mse")
    single, double = networks
    np.testing.assert_allclose(
        single.gradient, double.gradient, atol=1e-5 * np.abs(double.gradient).max()
    )
    layer = single.nodes[0]
    assert isinstance(layer, Recurrent)
    gradient = np.abs(layer.gates)  # whose gradients have taken their place
    assert np.count_nonzero(gradient == 0.0) > 0.2 * gradient.size  # it faded altogether
    assert not np.any((gradient > 0.0) & (gradient < np.finfo(np.float32).tiny))


def test_moments_without_a_gradient_become_nothing_and_not_subnormal():
    adam = Adam(2, np.dtype(np.float32))
    weights = np.zeros(2, np.float32)
    adam.update(weights, np.array([1e-3, 1e-3], np.float32), rate=0.0)
    for _ in range(1280):
        adam.update(weights, np.array([0.0, 1e-3], np.float32), rate=0.0)
    assert np.finfo(np.float32).tiny <= adam.mean[0] < 1e-36
    assert adam.mean[1] == pytest.approx(1e-3)


def test_a_confident_softmax_has_no_subnormal_gradient():
    from streamrnn.training.network.losses import loss_and_gradient

    z = np.array([[[95.0, 0.0, -3.0]]], np.float32)
    _, gradient = loss_and_gradient("cross_entropy", "softmax", z, np.zeros((1, 1, 1), np.float32))
    assert np.all((gradient == 0.0) | (np.abs(gradient) > np.finfo(np.float32).tiny))
    np.testing.assert_allclose(gradient, 0.0, atol=1e-20)
