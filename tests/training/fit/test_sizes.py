"""How much is trained at once and for how long, chosen from the data's lengths."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from streamrnn.training import TrainingConfig, train
from streamrnn.training.config_file import read_config
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.fit.chunks import choose_sizes
from streamrnn.training.fit.loop import fit
from tests.support.tables import noisy_sine, write_csv


def sizes_of(lengths, **options):
    """Return the sizes for streams whose training parts have these lengths."""
    stops = [(length, length + 10, length + 20) for length in lengths]
    dataset: Any = SimpleNamespace(
        config=TrainingConfig(path="x.csv", **options),
        streams=[SimpleNamespace(stops=each) for each in stops],
    )
    return choose_sizes(dataset)


@pytest.mark.parametrize(
    ("lengths", "batch_size", "segment_steps", "truncation_steps", "an_epoch"),
    [
        ([60], 1, 60, 60, 1),  # a few rows: all of them at once
        ([120], 1, 120, 120, 1),
        ([600], 4, 150, 64, 3),
        ([12_288], 12, 1024, 64, 16),
        ([30] * 40, 4, 300, 30, 10),  # whole streams side by side
    ],
)
def test_sizes_follow_from_the_lengths(
    lengths, batch_size, segment_steps, truncation_steps, an_epoch
):
    found = sizes_of(lengths)
    assert (found.batch_size, found.segment_steps) == (batch_size, segment_steps)
    assert (found.truncation_steps, found.updates_an_epoch) == (truncation_steps, an_epoch)
    assert (found.updates, found.evaluate_every, found.patience) == (2000, 40, 20)


def test_sizes_are_told_in_words():
    assert sizes_of([120]).describe() == (
        "training: segments of 120 steps, one at a time, gradients over 120 steps; at most 2,000 "
        "updates, about 2,000 epochs, validated every 40, to the end or 20 times without a better "
        "error"
    )
    told = sizes_of([600]).describe()
    assert "4 segments of 150 steps side by side" in told
    assert "2,000 updates, about 667 epochs" in told
    assert "54 updates, about 18 epochs" in sizes_of([600], updates=54).describe()


def test_many_rows_get_many_updates_and_few_epochs():
    """Of 3 million training rows 64 are a batch, and 20 epochs of 733 updates are enough."""

    found = sizes_of([3_000_000])
    assert (found.batch_size, found.updates_an_epoch, found.updates) == (64, 733, 14_660)
    found = sizes_of([3_000_000], epochs=1)
    assert (found.updates, found.num_epochs, found.evaluate_every) == (0, 1, 0)


def test_where_the_last_row_counts_longer_streams_are_taken_whole():
    assert sizes_of([300] * 30).truncation_steps == 64
    assert sizes_of([300] * 30, loss_on="last").truncation_steps == 300
    assert sizes_of([600] * 30, loss_on="last").truncation_steps == 64


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = write_csv(tmp_path_factory.mktemp("sizes"), y=noisy_sine(400))
    return make_dataset(
        TrainingConfig(path=path, predict=("y",), layers=("gru:3",)), read_table(path)
    )


def with_settings(dataset, **settings):
    return replace(dataset, config=dataset.config.replace(**settings))


def test_updates_are_the_bound_and_evenly_validated(dataset):
    found = fit(with_settings(dataset, updates=110, patience=1000))
    assert found.num_updates == 110
    assert [each.num_updates for each in found.history] == [*range(3, 110, 3), 110]
    assert [each.max_updates for each in found.history] == [110] * len(found.history)
    rates = [each.learning_rate for each in found.history]
    assert max(rates) == pytest.approx(3e-3, rel=0.01)
    assert rates[-1] < 1e-4  # the cosine ends with them


def test_epochs_are_a_bound_too(dataset):
    found = fit(with_settings(dataset, updates=1000, epochs=4))
    assert found.num_epochs == 4
    assert found.num_updates < 30
    alone = fit(with_settings(dataset, epochs=4))
    assert [each.epoch for each in alone.history] == [1, 2, 3, 4]


def test_patience_counts_evaluations(dataset):
    found = fit(with_settings(dataset, updates=2000, learning_rate=0.05, patience=3))
    best = [each.num_updates for each in found.history].index(found.best_update)
    assert len(found.history) == best + 1 + 3
    assert found.num_updates == found.best_update + 3 * 40


def test_a_file_of_an_earlier_version_still_trains_its_epochs(tmp_path):
    path = write_csv(tmp_path, y=noisy_sine(200))
    file = tmp_path / "old.toml"
    file.write_text(
        f'[data]\npath = "{path}"\npredict = ["y"]\n[model]\nlayers = ["gru:3"]\n[training]\n'
        "epochs = 5\nbatch_size = 2\ntruncation_steps = 64\npatience = 60\n",
        encoding="utf-8",
    )
    result = train(read_config(file))
    assert [each.epoch for each in result.history] == [1, 2, 3, 4, 5]
    assert (result.config.updates, result.config.epochs) == (0, 5)


def test_the_configuration_that_comes_back_repeats_what_was_chosen(tmp_path):
    path = write_csv(tmp_path, y=noisy_sine(200))
    first = train(TrainingConfig(path=path, predict=("y",), layers=("gru:3",), updates=60))
    assert 0 not in (first.config.batch_size, first.config.truncation_steps, first.config.patience)
    second = train(first.config)
    assert second.model.fingerprint == first.model.fingerprint
    assert second.config == first.config
