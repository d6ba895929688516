"""What is told of a table before the training."""

import numpy as np

from streamrnn.training.config import TrainingConfig
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.data.summary import summarise_columns, summarise_times, summary_lines
from tests.support.tables import write_csv


def dataset_of(path, **options):
    config = TrainingConfig(path=path, **options)
    return make_dataset(config, read_table(path, config.read_options(), config.kinds()))


def test_every_column_is_told_with_its_use(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.normal(size=60).round(3)
    gaps = [*map(str, y[:40]), *[""] * 20]
    path = write_csv(
        tmp_path,
        day=np.arange("2000-01-01", "2000-03-01", dtype="datetime64[D]"),
        y=y,
        copy=y,
        gaps=gaps,
        flat=np.ones(60),
        colour=["red", "blue"] * 30,
        count=np.arange(60),
    )
    found = {c.name: c for c in summarise_columns(dataset_of(path, predict=("y",), horizon=2))}
    assert found["day"].holds == "2000-01-01 to 2000-02-29"
    assert (found["day"].kind, found["day"].use) == ("times", "orders the rows")
    assert found["y"].holds == f"{y.min():g} to {y.max():g}"
    assert found["y"].use == "input; target 2 rows ahead"
    assert found["copy"].notes == ("equals y",)
    assert found["gaps"].missing == 1 / 3
    assert found["gaps"].use == "input, the last value where one is missing"
    assert (found["flat"].notes, found["flat"].use) == (("constant",), "not used")
    assert (found["colour"].kind, found["colour"].holds) == ("names", "blue, red")
    assert found["count"].notes == ("rises evenly",)


def test_times_that_are_equal_or_leave_gaps_are_counted_within_each_stream(tmp_path):
    def seconds(*values):
        return [str(np.datetime64(v, "s")) for v in values]

    steady = seconds(*range(0, 600, 10))
    gappy = seconds(*range(0, 100, 10), *range(90, 300, 10), *range(1000, 1290, 10))
    path = write_csv(
        tmp_path,
        t=steady + gappy,
        g=["a"] * 60 + ["b"] * 60,
        y=np.random.default_rng(0).normal(size=120),
    )
    dataset = dataset_of(path, predict=("y",), group=("g",))
    times = summarise_times(dataset)
    assert times is not None
    assert (times.interval, times.num_duplicates, times.num_gaps) == (10, 1, 1)
    assert times.largest_gap == 710
    lines = list(summary_lines(dataset))
    assert any("1 gap (the largest 11.83 min), 1 row of the time of" in line for line in lines)
    assert any("streams: 2, of 60 to 60 rows" in line for line in lines)


def test_what_is_told_of_many_columns_with_wild_names_stays_short_and_printable(tmp_path):
    rng = np.random.default_rng(0)
    columns = {f"c{k}": rng.integers(0, 9, 40) for k in range(100)}
    path = write_csv(tmp_path, **{"a\x1b[31m" + "x" * 99: np.arange(40) % 3, **columns})
    lines = list(summary_lines(dataset_of(path, predict=("c0",))))
    assert len(lines) < 50
    assert "\x1b" not in "".join(lines)
    assert max(map(len, lines)) < 200
    assert any("and 61 more columns" in line for line in lines)


def test_streams_of_one_label_in_all_parts_are_told(tmp_path):
    """Of twelve streams, parts are by time: the label of the test rows was learned."""
    rows = (f"{k // 10},{k % 7},{('up', 'down')[k // 10 % 2]}\n" for k in range(120))
    path = tmp_path / "data.csv"
    path.write_text("s,x,label\n" + "".join(rows))
    config = TrainingConfig(path=str(path), predict=("label",), group=("s",), horizon=(0,))

    def is_told(config):
        lines = summary_lines(make_dataset(config, read_table(path, kinds=config.kinds())))
        return any(line.startswith("each stream has one label") for line in lines)

    assert is_told(config)
    assert not is_told(config.replace(split_by="stream"))
    path.write_text(path.read_text().replace(",up", ",down", 1))  # a stream of two labels
    assert not is_told(config)
