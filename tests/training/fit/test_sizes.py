"""How much is trained at once and for how long, chosen from the data's lengths."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn.training import TrainingConfig, train
from streamrnn.training.config_file import read_config
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.evaluate import cut_pieces
from streamrnn.training.fit.chunks import SHORT_VALIDATION, Sizes, choose_sizes
from streamrnn.training.fit.loop import fit
from tests.support.tables import noisy_sine, write_csv


def sizes_of(lengths, validated=(), **options):
    """Return the sizes for streams whose training parts have these lengths."""
    rows = validated or [10] * len(lengths)
    stops = [(n, n + v, n + v + 10) for n, v in zip(lengths, rows, strict=True)]
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
    one = Sizes(2, 1, 1, 1, 1, 0, 1, 1).describe()
    assert "2 segments of 1 step side by side, gradients over 1 step; at most 1 update," in one
    assert "about 1 epoch, validated after each, to the end or 1 time without" in one
    assert "2,000 updates, about 667 epochs" in told
    assert "54 updates, about 18 epochs" in sizes_of([600], updates=54).describe()


def test_many_rows_get_many_updates_and_few_epochs():
    """Of 3 million training rows 64 are a batch, and 20 epochs of 733 updates are enough."""

    found = sizes_of([3_000_000])
    assert (found.batch_size, found.updates_an_epoch, found.updates) == (64, 733, 14_660)
    found = sizes_of([3_000_000], epochs=1)
    assert (found.updates, found.num_epochs, found.evaluate_every) == (0, 1, 0)


@given(
    lengths=st.lists(st.integers(100, 200_000), min_size=1, max_size=8),
    share=st.floats(0.05, 5.0),
    bound=st.sampled_from(["updates", "epochs"]),
    number=st.integers(1, 3000),
)
def test_validations_take_a_bounded_share_of_the_rows(lengths, share, bound, number):
    """A row of one costs 0.4 of a row of an update (measured: 0.33 to 0.38 of LSTMs)."""
    validated = [int(share * length) for length in lengths]
    found = sizes_of(lengths, validated, **{bound: number})
    pieces = [cut_pieces(slice(n, n + v)) for n, v in zip(lengths, validated, strict=True)]
    num_rows = sum(stop - begin for own in pieces for begin, _, stop in own)
    if num_rows <= SHORT_VALIDATION:
        return
    updates = found.updates or found.epochs * found.updates_an_epoch
    apart = found.evaluate_every or found.updates_an_epoch
    trained = updates * sum(lengths) / found.updates_an_epoch
    if updates // apart <= 1:  # the one at the end there is in any case
        return
    spent = 0.4 * num_rows * (updates // apart)
    assert spent <= 0.151 * (spent + trained)


def test_a_short_validation_part_is_validated_as_often_as_ever():
    found = sizes_of([4096], [1000], updates=50)
    assert (found.evaluate_every, found.patience) == (1, 20)


def test_a_long_validation_part_is_validated_less_often():
    """As of a text of 4 million characters: 828,000 rows, and history before every 4,096."""
    found = sizes_of([2_483_386], [827_796], updates=3000)
    assert found.evaluate_every == 600
    assert found.patience == 10
    assert "validated every 600" in found.describe()
    by_epochs = sizes_of([40_000], [200_000], epochs=60)
    assert "at ends that are 242 updates apart or more" in by_epochs.describe()
    for few in ({"updates": 200}, {"epochs": 6}):
        assert "validated once, at the end" in sizes_of([40_000], [200_000], **few).describe()


def test_epochs_are_validated_at_ends_that_are_far_enough_apart(tmp_path):
    path = write_csv(tmp_path, y=noisy_sine(6000))
    config = TrainingConfig(
        path=path, predict=("y",), layers=("gru:2",), split=(0.1, 0.8, 0.1), epochs=7
    )
    dataset = make_dataset(config, read_table(path))
    sizes = choose_sizes(dataset)
    epochs = [each.epoch for each in fit(dataset).history]
    apart = -(-sizes.evaluate_every // sizes.updates_an_epoch)
    assert apart > 1
    assert epochs == sorted({*range(apart, 8, apart), 7})


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
