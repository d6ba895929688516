"""Noise on what a network sees in training."""

import numpy as np
import pytest

from streamrnn.training import TrainingConfig
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.data.stacking import stack_rows
from streamrnn.training.fit.augment.noise import add_noise
from tests.support.tables import write_csv

NUM_STREAMS, NUM_STEPS = 40, 6


def sequences(tmp_path, target, **options):
    """Read short streams of a number with gaps, a name and another number."""
    rng = np.random.default_rng(0)
    size = NUM_STREAMS * NUM_STEPS
    a = [f"{value:.3f}" for value in rng.normal(5, 3, size)]
    a[::7] = [""] * len(a[::7])
    path = write_csv(
        tmp_path,
        s=np.repeat([f"s{k}" for k in range(NUM_STREAMS)], NUM_STEPS),
        t=np.tile(np.arange(NUM_STEPS), NUM_STREAMS),
        a=a,
        name=rng.choice(["x", "y", "z"], size),
        b=rng.normal(size=size),
        target=target,
    )
    config = TrainingConfig(
        path=path,
        predict=("target",),
        group=("s",),
        time="t",
        missing={"a": "mask"},
        horizon=(0,),
        **options,
    )
    return make_dataset(config, read_table(path))


CLASSES = np.repeat(["low", "high"], NUM_STREAMS * NUM_STEPS // 2)
VALUES = np.repeat(np.linspace(0, 1, NUM_STREAMS), NUM_STEPS)


@pytest.mark.parametrize(
    ("target", "options", "expected"),
    [
        (CLASSES, {}, 0.6),
        (CLASSES, {"noise": 0.0}, 0.0),
        (CLASSES, {"noise": 0.25}, 0.25),
        (CLASSES, {"loss_on": "every"}, 0.0),
        (VALUES, {}, 0.0),
    ],
)
def test_noise_is_chosen_for_sequences_of_one_class_each(tmp_path, target, options, expected):
    assert sequences(tmp_path, target, **options).config.noise == expected


def test_only_numbers_get_noise_of_the_size_that_is_set(tmp_path):
    dataset = sequences(tmp_path, CLASSES, noise=0.5)
    rows = [(k, 0, NUM_STEPS) for k in range(NUM_STREAMS)]
    plain, _ = stack_rows(dataset.streams, rows)
    noisy, _ = stack_rows(dataset.streams, rows)
    add_noise(noisy, dataset, update=3)
    added = noisy.features - plain.features
    # a, whether a is missing, x, y, z, b
    assert not added[..., 1:5].any()
    numbers = added[..., [0, 5]]
    assert (numbers != 0).mean() > 0.999
    assert abs(numbers.std() - 0.5) < 0.05
    assert abs(numbers.mean()) < 0.1


def test_noise_follows_from_seed_and_update_alone(tmp_path):
    dataset = sequences(tmp_path, CLASSES, noise=0.5)
    other_seed = sequences(tmp_path, CLASSES, noise=0.5, seed=1)

    def drawn(of, update):
        chunk, _ = stack_rows(dataset.streams, [(0, 0, NUM_STEPS)])
        add_noise(chunk, of, update)
        return chunk.features

    assert (drawn(dataset, 1) == drawn(dataset, 1)).all()
    assert (drawn(dataset, 1) != drawn(dataset, 2)).any()
    assert (drawn(dataset, 1) != drawn(other_seed, 1)).any()
