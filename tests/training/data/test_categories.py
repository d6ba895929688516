"""Names that are rare, new or absent, and inputs made of the time, from training to prediction."""

import csv
from datetime import datetime, timedelta

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.commands.predict import predict_file
from streamrnn.errors import DataError, InputError, TrainingError
from streamrnn.training.config import TrainingConfig
from streamrnn.training.config_file import read_config
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.data.summary import summarise_columns
from streamrnn.training.train import train, train_to_file
from streamrnn.training.unseen import evaluate_file
from streamrnn_client import time_features
from tests.support.tables import write_csv

START = datetime(2021, 3, 27, 22)


def dataset_of(path, **options):
    config = TrainingConfig(path=path, **options)
    return make_dataset(config, read_table(path, config.read_options(), config.kinds()))


def coloured(tmp_path, colours, num_rows=100):
    rng = np.random.default_rng(0)
    return write_csv(
        tmp_path,
        colour=[*colours, *["red"] * (num_rows - len(colours))],
        y=rng.normal(size=num_rows),
    )


def test_rare_names_and_those_of_later_parts_are_one_category(tmp_path):
    colours = ["blue", "blue", "green", *["grey", "red"] * 10]
    path = coloured(tmp_path, colours, 99)
    with open(path, "a", encoding="utf-8") as file:
        file.write("\nnew,1")
    dataset = dataset_of(path, predict=("y",), other=2)
    item, x = dataset.spec.inputs[0], dataset.streams[0].x[:, 0]
    assert item.categories == ("grey", "red", "other")
    np.testing.assert_array_equal(x[:5], [2, 2, 2, 0, 1])
    assert x[-1] == 2
    assert dataset_of(path, predict=("y",)).spec.inputs[0].categories == (
        "blue", "green", "grey", "new", "red",
    )  # fmt: skip


def test_empty_cells_are_a_category_of_their_own(tmp_path):
    path = coloured(tmp_path, ["", "blue", "", "missing"])
    item = dataset_of(path, predict=("y",)).spec.inputs[0]
    assert item.categories == ("blue", "missing", "red")
    path = coloured(tmp_path, ["", "blue", ""])
    dataset = dataset_of(path, predict=("y",), other=1)
    assert dataset.spec.inputs[0].categories == ("red", "missing", "other")
    np.testing.assert_array_equal(dataset.streams[0].x[:4, 0], [1, 2, 1, 0])
    found = next(c for c in summarise_columns(dataset) if c.name == "colour")
    assert found.use == "input, an empty cell as the name missing, 1 rare names as other"


def test_predict_and_engine_take_new_and_absent_names(tmp_path):
    path = coloured(tmp_path, ["", "blue", "", *["green"] * 9])
    config = TrainingConfig(path=path, predict=("y",), other=1, epochs=1, layers=("gru:3",))
    model = train_to_file(config, tmp_path / "m.safetensors").model
    data = tmp_path / "new.csv"
    data.write_text("colour,y\nviolet,1\n,2\nother,3\nred,4\n", encoding="utf-8")
    predict_file(model, data, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", encoding="utf-8") as file:
        got = [float(row[0]) for row in list(csv.reader(file))[1:]]
    names = model.spec.inputs[0].categories
    index = [names.index(name) for name in ("other", "missing", "other", "red")]
    expected = Engine(model).steps("s", np.array([index, [1, 2, 3, 4]], np.float32).T)
    np.testing.assert_array_equal(np.array(got, np.float32), expected[:, 0])
    named = Engine(model).steps("s", {"colour": ["violet", None, "pink", "red"], "y": [1, 2, 3, 4]})
    np.testing.assert_array_equal(named, expected)


@pytest.mark.parametrize("num_names", [3, 12])
def test_a_category_that_training_never_sees_adds_nothing(tmp_path, num_names):
    colours = [*"abcdefghijkl"[:num_names] * 8, "late"]
    path = write_csv(tmp_path, y=np.random.default_rng(0).normal(size=len(colours)), colour=colours)
    config = TrainingConfig(path=path, predict=("y",), other=1, epochs=3, layers=("gru:3",))
    model = train(config).model
    names = model.spec.inputs[1].categories
    assert names == (*"abcdefghijkl"[:num_names], "other")
    if model.spec.inputs[1].embedding_size:
        by_name = model.parameters["embedding.colour.weight"]
    else:
        by_name = model.parameters["weight_ih_l0"][:, 1:].T
    assert by_name.shape[0] == num_names + 1
    assert not by_name[-1].any()
    assert (by_name[:-1] != 0).all()


def test_a_model_without_the_category_says_how_to_get_it(tmp_path):
    path = coloured(tmp_path, ["blue"] * 9)
    config = TrainingConfig(path=path, predict=("y",), epochs=1, layers=("gru:3",))
    model = train_to_file(config, tmp_path / "m.safetensors").model
    data = tmp_path / "new.csv"
    data.write_text("colour,y\nviolet,1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"'violet' is none of the 2 known .* --other ROWS"):
        predict_file(model, data, tmp_path / "out.csv")
    with pytest.raises(InputError, match="no category 'violet'"):
        Engine(model).steps("s", {"colour": ["violet"], "y": [1.0]})


def timed(tmp_path, num_rows=150, names=("a", "b")):
    """Write streams whose rows are 1 to 5 hours apart, in any order."""
    rng = np.random.default_rng(1)
    rows = []
    for name in names:
        hours = np.cumsum(rng.integers(1, 6, num_rows))
        rows += [(START + timedelta(hours=int(h)), name, rng.normal()) for h in hours]
    rows = [rows[k] for k in rng.permutation(len(rows))]
    return write_csv(
        tmp_path,
        at=[moment.isoformat() for moment, _, _ in rows],
        g=[name for _, name, _ in rows],
        y=[value for _, _, value in rows],
    ), rows  # fmt: skip


def test_a_served_stream_gets_what_predict_gives_for_features_of_time(tmp_path):
    path, rows = timed(tmp_path)
    config = TrainingConfig(
        path=path,
        predict=("y",),
        group=("g",),
        time_features=("hour", "weekday", "month", "elapsed"),
        epochs=2,
        layers=("gru:4",),
    )
    result = train_to_file(config, tmp_path / "m.safetensors")
    model = result.model
    names = [item.name for item in model.spec.inputs]
    assert names == [
        "y", "hour sin", "hour cos", "weekday sin", "weekday cos", "month sin", "month cos",
        "elapsed s",
    ]  # fmt: skip
    assert model.spec.inputs[-1].missing == "mean"
    assert not any(item.difference for item in model.spec.inputs[1:])
    predict_file(model, path, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", encoding="utf-8") as file:
        written = {(row[0], row[1]): float(row[2]) for row in list(csv.reader(file))[1:]}
    engine = Engine(model)
    for name in "ab":
        last = None
        for moment, _, value in sorted(row for row in rows if row[1] == name):
            x = {"y": value} | time_features(names, moment, last)
            y = engine.steps(name, {name: [number] for name, number in x.items()})
            assert np.float32(written[moment.isoformat(), name]) == y[0, 0]
            last = moment
    evaluated = evaluate_file(model, path, warmup_rows=1)
    assert evaluated["errors"]["y+1"]["rmse"] > 0
    again = make_dataset(
        read_config(tmp_path / "m.toml"),
        read_table(path, config.read_options(), config.kinds()),
    )
    assert again.spec.inputs == model.spec.inputs


def test_features_of_time_that_cannot_be_are_refused(tmp_path):
    path, _ = timed(tmp_path)
    with pytest.raises(TrainingError, match=r"names 'hours' \(did you mean 'hour'\?\); known are"):
        TrainingConfig(path=path, time_features=("hours",))
    options = {"predict": ("y",), "group": ("g",), "time_features": ("hour",)}
    with pytest.raises(TrainingError, match="no column is; name --time"):
        dataset_of(path, **options, time="")
    daily = write_csv(
        tmp_path,
        day=[f"2000-{m:02}-{d:02}" for m in (1, 2, 3) for d in range(1, 29)],
        y=np.random.default_rng(0).normal(size=84),
    )
    with pytest.raises(DataError, match="'hour sin' is the same in all of the training part"):
        dataset_of(daily, predict=("y",), time_features=("hour",))
    text = (tmp_path / "data.csv").read_text().replace("day,", "hour sin,")
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(DataError, match="name of a feature of time"):
        dataset_of(daily, predict=("y",), time_features=("hour",))


def test_texts_that_never_come_again_are_refused_unless_they_are_called_names(tmp_path):
    path = tmp_path / "data.csv"
    rows = (f"2{k // 4:03d}Q{k % 4 + 1},{k % 7}\n" for k in range(60))
    path.write_text("quarter,y\n" + "".join(rows))
    config = TrainingConfig(path=str(path), predict=("y",))
    with pytest.raises(DataError, match=r"another text in each of 60 rows.*--time with --date-for"):
        make_dataset(config, read_table(path))
    for given in (config.replace(categorical=("quarter",)), config.replace(other=1)):
        dataset = make_dataset(given, read_table(path, kinds=given.kinds()))
        assert "quarter" in [item.name for item in dataset.spec.inputs]
