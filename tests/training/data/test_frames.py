"""Data in memory: frames, mappings and sequences give what a file of them would."""

import numpy as np
import pytest

from streamrnn.errors import DataError
from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.arrays import table_of_sequences
from streamrnn.training.data.reading.frames import read_data
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.data.reading.read import read_table

WHEN = np.array(["2000-01-01", "2000-01-02", "2000-01-03"], "datetime64[ms]")
COLUMNS = {
    "when": WHEN,
    "id": ["07", "7", "7"],
    "y": [1.5, np.nan, 2.0],
    "n": [1, 2, 3],
}


def table_of(data, **kinds):
    return read_data(data, ReadOptions(), kinds)


def made(kind):
    if kind == "mapping":
        return COLUMNS
    module = pytest.importorskip(kind)
    return module.table(COLUMNS) if kind == "pyarrow" else module.DataFrame(COLUMNS)


@pytest.mark.parametrize("kind", ["mapping", "pandas", "polars", "pyarrow"])
def test_every_kind_of_frame_gives_the_same_table(kind):
    table = table_of(made(kind))
    assert list(table.columns) == list(COLUMNS)
    np.testing.assert_array_equal(table.column("when").times, WHEN.astype(np.int64) / 1000)
    assert table.column("id").labels == ("07", "7")
    np.testing.assert_array_equal(table.column("y").numbers, COLUMNS["y"])
    np.testing.assert_array_equal(table.column("n").numbers, [1, 2, 3])
    assert table_of(made(kind), n="text").column("n").labels == ("1", "2", "3")


def test_an_index_of_pandas_that_says_something_is_a_column():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"y": [1.0, 2.0]}, index=pd.DatetimeIndex(["2000-01-01", "2000-01-02"]))
    assert list(table_of(frame).columns) == ["index", "y"]
    frame.index.name = "day"
    assert list(table_of(frame).columns) == ["day", "y"]
    for numbers in ([1, 0], [3, 7]):
        assert list(table_of(pd.DataFrame({"y": [1.0, 2.0]}, index=numbers)).columns) == ["y"]
    nullable = pd.DataFrame({"y": pd.array([1, None], "Int64"), "c": pd.Categorical(["a", None])})
    table = table_of(nullable)
    np.testing.assert_array_equal(table.column("y").numbers, [1, np.nan])
    np.testing.assert_array_equal(table.column("c").indices, [0, -1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "data is a list; expected a path, a DataFrame"),
        ({"a": [1, "x"]}, "cannot be read as a table"),
        ({"a": [[1], [2]]}, "column 'a' is of type list"),
        ({"a": [1, 2], "b": [1]}, "columns of different lengths"),
        ({}, "has no rows"),
    ],
)
def test_what_is_no_table_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        table_of(data)


def test_sequences_with_a_class_each_are_as_an_npz_of_them(tmp_path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, 40)
    xs = [rng.normal(size=(n, 3)) for n in lengths]
    labels = np.arange(40) % 4
    table = table_of((xs, labels))
    padded = np.zeros((40, 9, 3))
    for k, x in enumerate(xs):
        padded[k, : len(x)] = x
    np.savez(tmp_path / "s.npz", X=padded, y=labels, lengths=lengths)
    read = read_table(tmp_path / "s.npz")
    for one in (table, read):
        dataset = make_dataset(TrainingConfig(path="made"), one)
        assert (dataset.loss, dataset.config.loss_on) == ("cross_entropy", "last")
        assert (dataset.split.kind, dataset.config.horizon) == ("stream", (0,))
        for stream, x, label in zip(dataset.streams, xs, labels, strict=True):
            np.testing.assert_array_equal(stream.x, x.astype(np.float32))
            np.testing.assert_array_equal(stream.target[:, 0], [*[np.nan] * (len(x) - 1), label])


def test_sequences_with_names_or_numbers_to_predict():
    xs = [np.zeros((4, 2)), np.ones((3, 2))]
    named = table_of((xs, ["cat", "dog"]))
    assert named.column("y").labels == ("cat", "dog")
    np.testing.assert_array_equal(named.column("y").indices, [-1, -1, -1, 0, -1, -1, 1])
    valued = table_of((xs, [0.5, 2.5]))
    np.testing.assert_array_equal(
        valued.column("y").numbers, [*[np.nan] * 3, 0.5, np.nan, np.nan, 2.5]
    )
    every = table_of((xs, [np.arange(4.0), np.arange(3.0)]))
    np.testing.assert_array_equal(every.column("y").numbers, [0, 1, 2, 3, 0, 1, 2])


@pytest.mark.parametrize(
    ("sequences", "targets", "message"),
    [
        ([], None, "holds no row"),
        ([np.zeros((0, 2))], None, "holds no row"),
        ([np.zeros((3, 2)), np.zeros((3, 1))], None, r"sequence 1 .* is float64 \[3, 1\]"),
        ([np.zeros((3, 0))], None, "has no inputs"),
        ([np.zeros((3, 2))], [1, 2], "has 1 sequence, and targets of 2"),
        ([np.zeros((3, 2)), np.zeros((0, 2))], [1, 2], "sequence 1 .* has no row"),
        ([np.zeros((3, 2))], [np.zeros(4)], r"y of sequence 0 .* \[4, 1\]; expected \[3\]"),
        ([np.zeros((3, 2))], [-1], "holds the class -1"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(sequences, targets, message):
    with pytest.raises(DataError, match=message):
        table_of_sequences(sequences, targets)


@pytest.mark.parametrize(
    ("when", "words"),
    [
        (
            ["25.12.2000", "26.12.2000", "27.12.2000"],
            "seems to hold dates.*'25.12.2000'.*perhaps --date-format '%d.%m.%Y'",
        ),
        (["first", "second", "third"], "holds text .'first'.*or as --date-format says"),
    ],
)
def test_texts_that_are_to_order_rows_are_said_which_format_reads_them(when, words):
    data = {"when": when, "y": [1.0, 2.0, 3.0]}
    config = TrainingConfig(path="x", predict=("y",), time="when")
    with pytest.raises(DataError, match=words):
        make_dataset(config, table_of(data))


def test_text_that_seems_to_be_dates_is_asked_about_wherever_it_stands():
    frame = {"day": ["01.02.2020", "02.02.2020", "03.02.2020"], "y": [1.0, 2.0, 3.0]}
    with pytest.raises(DataError, match=r"'day' seems to hold dates.*--date-format '%d\.%m\.%Y'"):
        table_of(frame).usable("day")
    assert table_of(frame, day="text").usable("day").labels[0] == "01.02.2020"
    told = read_data(frame, ReadOptions(date_format="%d.%m.%Y"), {})
    days = told.usable("day").times
    assert days is not None
    np.testing.assert_array_equal(np.diff(days), [86_400.0, 86_400.0])
