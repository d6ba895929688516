"""Streams and their parts: by time, by one date, by whole streams, as a column says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamrnn.errors import DataError, TrainingError
from streamrnn.training.config import PARTS, TrainingConfig
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.data.split import split_streams
from streamrnn.training.data.streams import rows_of_streams
from streamrnn.training.data.table import Column, Table
from tests.support.tables import write_csv


def dataset_of(path, **options):
    config = TrainingConfig(path=path, **options)
    return make_dataset(config, read_table(path, config.read_options(), config.kinds()))


def days(first, count):
    return (np.datetime64("2000-01-01") + first + np.arange(count)).astype(str)


def long_table(tmp_path, *spans):
    """Write a long table: of each stream its first day and its number of days."""
    names = np.concatenate([[f"s{k}"] * count for k, (_, count) in enumerate(spans)])
    dates = np.concatenate([days(first, count) for first, count in spans])
    y = np.random.default_rng(0).normal(size=len(names))
    return write_csv(tmp_path, day=dates, g=names, y=y)


def parts_of(dataset):
    """Return by part the days whose values are targets."""
    times = dataset.table.column("day").times
    rows = rows_of_streams(dataset.table, "day", ("g",))
    found = {}
    for part in PARTS:
        found[part] = np.concatenate(
            [times[rows[s.name][1:]][s.rows(part)] for s in dataset.streams]
        )
    return found


def test_streams_that_share_calendar_time_are_cut_at_the_same_dates(tmp_path):
    dataset = dataset_of(
        long_table(tmp_path, (0, 100), (40, 100), (90, 60)), predict=("y",), group=("g",)
    )
    assert dataset.split.kind == dataset.config.split_by == "date"
    parts = parts_of(dataset)
    assert parts["train"].max() < parts["validation"].min()
    assert parts["validation"].max() < parts["test"].min()
    first = parts["test"].min().astype("datetime64[s]").astype("datetime64[D]")
    assert dataset.split.says == f"rows from {first} on"


def test_one_stream_is_cut_by_its_rows_and_few_apart_each_by_its_own(tmp_path):
    one = dataset_of(
        write_csv(tmp_path, y=np.random.default_rng(0).normal(size=50)), predict=("y",)
    )
    assert (one.split.kind, one.streams[0].stops) == ("time", (29, 39, 49))
    apart = dataset_of(long_table(tmp_path, (0, 50), (60, 50)), predict=("y",), group=("g",))
    assert apart.split.kind == "time"
    assert [stream.stops for stream in apart.streams] == [(29, 39, 49)] * 2


def sequences(tmp_path, num=60, steps=5, **extra):
    rng = np.random.default_rng(1)
    labels = np.repeat(["a", "b", "c"], num // 3)
    rows = {
        "s": np.repeat([f"u{k:03}" for k in range(num)], steps),
        "x": rng.normal(size=num * steps),
        "label": np.repeat(labels, steps),
    }
    return write_csv(tmp_path, **rows, **extra)


def test_many_short_streams_with_a_class_each_are_whole_in_one_part_and_judged_once(tmp_path):
    path = sequences(tmp_path)
    dataset = dataset_of(path, predict=("label",), group=("s",), horizon=0)
    assert (dataset.split.kind, dataset.config.loss_on) == ("stream", "last")
    counts = {part: np.zeros(3, int) for part in PARTS}
    for stream in dataset.streams:
        lengths = [stream.rows(part).stop - stream.rows(part).start for part in PARTS]
        assert sorted(lengths) == [0, 0, 5]
        assert np.isnan(stream.target[:-1]).all()
        counts[PARTS[int(np.argmax(lengths))]][int(stream.target[-1, 0])] += 1
    # Every class in the same shares in every part.
    for part, each in zip(PARTS, (12, 4, 4), strict=True):
        np.testing.assert_array_equal(counts[part], each)
    every = dataset_of(path, predict=("label",), group=("s",), horizon=0, loss_on="every")
    assert not np.isnan(every.streams[0].target).any()
    other = dataset_of(path, predict=("label",), group=("s",), horizon=0, seed=1)
    assert [s.stops for s in other.streams] != [s.stops for s in dataset.streams]


def test_streams_in_the_order_of_the_file(tmp_path):
    dataset = dataset_of(
        sequences(tmp_path), predict=("label",), group=("s",), horizon=0, split_by="file"
    )
    parts = [int(np.argmax(np.diff([0, *stream.stops]))) for stream in dataset.streams]
    assert parts == [0] * 36 + [1] * 12 + [2] * 12


def test_a_column_says_the_parts(tmp_path):
    part = np.repeat(["train"] * 30 + ["val"] * 10 + ["test"] * 20, 5)
    path = sequences(tmp_path, part=part)
    options = {"predict": ("label",), "group": ("s",), "horizon": 0}
    dataset = dataset_of(path, **options, split_by="column:part")
    assert [item.name for item in dataset.spec.inputs] == ["x"]
    found = [int(np.argmax(np.diff([0, *stream.stops]))) for stream in dataset.streams]
    assert found == [0] * 30 + [1] * 10 + [2] * 20
    assert dataset.config.split_by == "column:part"
    with pytest.raises(DataError, match="holds 'a'; it must hold train"):
        dataset_of(path, **options, split_by="column:label")
    part[7] = "test"
    with pytest.raises(DataError, match=r"go back .* within a stream \(u001\)"):
        dataset_of(sequences(tmp_path, part=part), **options, split_by="column:part")
    with pytest.raises(TrainingError, match="split_by is 'column'"):
        dataset_of(path, **options, split_by="column")


def test_rows_of_several_streams_that_nobody_told_apart_are_asked_about(tmp_path):
    path = long_table(tmp_path, (0, 40), (0, 40), (0, 40))
    with pytest.raises(DataError, match=r"3 rows of 2000-01-01\).*--group 'g', perhaps"):
        dataset_of(path, predict=("y",))
    assert len(dataset_of(path, predict=("y",), time="").streams) == 1
    assert len(dataset_of(path, predict=("y",), group=("g",)).streams) == 3


def test_several_columns_tell_streams_apart_by_their_text(tmp_path):
    site, sensor = ["a", "a", "b", "b"] * 20, ["7", "07", "7", "7"] * 20
    path = write_csv(tmp_path, site=site, sensor=sensor, y=np.arange(80.0) % 7)
    dataset = dataset_of(path, predict=("y",), group=("site", "sensor"))
    assert [stream.name for stream in dataset.streams] == ["a/07", "a/7", "b/7"]
    assert [len(stream.x) for stream in dataset.streams] == [20, 20, 40]


def test_names_that_are_equal_when_put_together_are_refused(tmp_path):
    path = write_csv(tmp_path, p=["a/b", "a"] * 20, q=["c", "b/c"] * 20, y=np.arange(40.0) % 7)
    with pytest.raises(DataError, match="two streams have the same name"):
        dataset_of(path, predict=("y",), group=("p", "q"))


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_no_row_is_in_two_parts_and_no_target_of_a_part_lies_in_a_later_one(data):
    lengths = data.draw(st.lists(st.integers(0, 40), min_size=3, max_size=30))
    kind = data.draw(st.sampled_from(["time", "date", "stream", "file"]))
    horizon = data.draw(st.integers(0, 3))
    starts = data.draw(st.lists(st.integers(0, 60), min_size=len(lengths), max_size=len(lengths)))
    index = np.concatenate([np.full(n, k, np.int32) for k, n in enumerate(lengths)])
    times = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])
    columns = {
        "g": Column("g", labels=tuple(map(str, range(len(lengths)))), indices=index),
        "t": Column("t", numbers=times.astype(float)),
        "y": Column("y", numbers=np.zeros(len(times))),
    }
    if sum(n > 0 for n in lengths) < 3:
        return
    table = Table("made", columns, len(times), "")
    config = TrainingConfig(path="made", predict=("y",), time="t", split_by=kind, horizon=horizon)
    rows = rows_of_streams(table, "t", ("g",))
    split = split_streams(config, table, rows)
    for name, own in rows.items():
        first, second, last = split.stops[name]
        assert 0 <= first <= second <= last <= max(0, len(own) - horizon)
        if kind in ("stream", "file"):
            assert len({0, first, second, last}) <= 2
    if kind == "date":
        cut = [
            [times[rows[n]][split.stops[n][k] + horizon - 1] for n in rows if split.stops[n][k]]
            for k in range(2)
        ]
        late = [
            [
                times[rows[n]][split.stops[n][k] + horizon]
                for n in rows
                if split.stops[n][k + 1] > split.stops[n][k]
            ]
            for k in range(2)
        ]
        for before, after in zip(cut, late, strict=True):
            assert not before or not after or max(before) < min(after)
