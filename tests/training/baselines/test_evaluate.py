"""`streamrnn evaluate`: a model beside its baselines on a file it has not seen."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from streamrnn.commands.predict import predict_file
from streamrnn.errors import DataError, ModelFileError
from streamrnn.model.model import Model
from streamrnn.model.spec import OutputSpec
from streamrnn.training import TrainingConfig, train_to_file
from streamrnn.training.unseen import evaluate_file
from streamrnn_server.cli import main
from tests.support.tables import noisy_sine, write_csv


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of two streams with gaps, a category and a differenced target; and its file."""
    directory = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(3)
    level = np.concatenate([noisy_sine(200) + 0.1 * np.arange(200), noisy_sine(200, 1)])
    gaps = rng.random(400) < 0.05
    path = write_csv(
        directory,
        day=np.tile(np.arange(200), 2),
        g=np.repeat(["a", "b"], 200),
        y=["" if gap else f"{value:.5f}" for gap, value in zip(gaps, level, strict=True)],
        colour=rng.choice(["red", "green"], 400),
    )
    config = TrainingConfig(
        path=path, predict=("y",), time="day", group=("g",), epochs=2, layers=("gru:6",),
        difference=("y",),
    )  # fmt: skip
    return train_to_file(config, directory / "m.safetensors"), path, directory


def new_file(trained, tmp_path, change=lambda rows: rows):
    """Copy the table with the rows changed."""
    with open(trained[1], encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    path = tmp_path / "new.csv"
    lines = [header, *change(rows)]
    path.write_text("\n".join(",".join(row) for row in lines) + "\n", encoding="utf-8")
    return path


def test_the_same_rows_have_the_errors_of_the_report(trained, tmp_path):
    """The rows before the test part warm up, as they did in training."""
    result, _, _ = trained
    path = new_file(trained, tmp_path)
    found = evaluate_file(result.model, path, warmup_rows=159)
    compared = found["comparison"]["y+1"]
    assert compared["verdict"] == result.report["comparison"]["y+1"]["verdict"]
    for ours, theirs in (
        (found["errors"], result.report["errors"]["test"]),
        *((found["baselines"][k], v) for k, v in result.report["baselines"].items()),
    ):
        assert ours["y+1"] == pytest.approx(theirs["y+1"], rel=1e-6)
    for name, entry in result.report["comparison"]["y+1"]["against"].items():
        other = compared["against"][name]
        assert (other["label"], other["drawn"]) == (entry["label"], entry["drawn"])
        for key in ("ratio", "low", "high"):
            assert other[key] == pytest.approx(entry[key], rel=1e-5)
    assert not found["is_training_file"]
    assert (found["num_rows"], found["num_streams"]) == (400, 2)


def test_the_error_is_that_of_the_predictions(trained, tmp_path):
    result, _, _ = trained
    rng = np.random.default_rng(9)
    path = tmp_path / "new.csv"
    y = np.round(noisy_sine(90, 5) + 3, 5)
    rows = [
        f"{day},{stream},{y[day + 30 * k]},{rng.choice(['red', 'green'])}"
        for k, stream in enumerate(("b", "new"))
        for day in rng.permutation(60 - 30 * k)
    ]
    path.write_text("day,g,y,colour\n" + "\n".join(rows), encoding="utf-8")
    found = evaluate_file(result.model, path)
    ordered = sorted(rows, key=lambda row: (row.split(",")[1], int(row.split(",")[0])))
    path.write_text("day,g,y,colour\n" + "\n".join(ordered), encoding="utf-8")
    predict_file(result.model, path, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", encoding="utf-8") as file:
        guess = [float(row["y_h1"]) for row in csv.DictReader(file)]
    truth = [float(row.split(",")[2]) for row in ordered]
    pairs = [(guess[t], truth[t + 1]) for t in range(89) if t != 59]
    error = np.sqrt(np.mean([(a - b) ** 2 for a, b in pairs]))
    assert found["errors"]["y+1"]["rmse"] == pytest.approx(error, rel=1e-4)
    before = [truth[t] - truth[t + 1] for t in range(89) if t != 59]
    persistence = found["baselines"]["persistence"]["y+1"]["rmse"]
    assert persistence == pytest.approx(np.sqrt(np.mean(np.square(before))), rel=1e-4)
    assert found["comparison"]["y+1"]["num_targets"] == 88


def test_a_counter_at_a_thousand_million_is_judged_as_one_from_0(tmp_path):
    """In float32 its steps would be 64; the values of the file are taken off their origin."""
    steps = np.random.default_rng(7).integers(0, 30, 300)
    found = []
    for k, first in enumerate((0, 10**9)):
        (tmp_path / str(k)).mkdir()
        path = write_csv(tmp_path / str(k), count=np.cumsum(steps) + first)
        config = TrainingConfig(path=path, predict=("count",), epochs=3, layers=("gru:4",))
        result = train_to_file(config, tmp_path / str(k) / "m.safetensors")
        new = write_csv(tmp_path, count=np.cumsum(steps[::-1]) + first + 4000)
        found.append(evaluate_file(result.model, new))
        baselines = found[-1]["baselines"]
        expected = np.sqrt(np.mean(np.square(steps[::-1][1:].astype(float))))
        assert baselines["persistence"]["count+1"]["rmse"] == pytest.approx(expected, rel=1e-4)
    assert result.model.spec.inputs[0].origin > 9e8
    for name in found[0]["baselines"]:
        ours, theirs = (f["baselines"][name]["count+1"]["rmse"] for f in found)
        assert ours == pytest.approx(theirs, rel=1e-2)
    ours, theirs = (f["errors"]["count+1"]["rmse"] for f in found)
    assert ours == pytest.approx(theirs, rel=1e-2)


def test_of_sequences_the_last_row_is_judged_and_whole_streams_are_drawn(tmp_path):
    rng = np.random.default_rng(8)

    def table(directory, num):
        lengths = rng.integers(4, 8, num)
        kinds = np.repeat(rng.integers(0, 2, num), lengths)
        return write_csv(
            directory,
            s=np.repeat(np.arange(num), lengths),
            x=kinds + rng.normal(size=lengths.sum()),
            kind=np.array(["low", "high"])[kinds],
        )

    config = TrainingConfig(
        path=table(tmp_path, 60), predict=("kind",), group=("s",), horizon=(0,), epochs=3
    )
    model = train_to_file(config, tmp_path / "m.safetensors").model
    found = evaluate_file(model, table(tmp_path, 25))
    compared = found["comparison"]["kind"]
    assert compared["num_targets"] == found["num_streams"] == 25
    assert compared["against"]["logistic"]["drawn"] == "25 whole streams"


def test_the_command_prints_the_table_and_json(trained, tmp_path, capsys):
    _, path, directory = trained
    model = str(directory / "m.safetensors")
    new = str(new_file(trained, tmp_path))
    assert main(["evaluate", model, new]) == 0
    text = capsys.readouterr().out
    assert "error of y+1 (rmse; " in text
    assert "autoregression, " in text
    assert "verdict on y+1: " in text
    assert "rows of the file that the model was trained with are in this one" in text
    assert main(["evaluate", model, path, "--warmup", "20"]) == 0
    text = capsys.readouterr().out
    assert "this is the file that the model was trained with" in text
    assert "the first 20 rows of every stream" in text
    assert main(["evaluate", model, new, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {
        "file", "sha256", "is_training_file", "has_training_rows", "num_rows", "num_streams",
        "warmup_rows", "unit", "unknown_classes", "not_judged", "intervals", "errors", "baselines",
        "comparison", "in_sample", "is_refit",
    }  # fmt: skip
    assert main(["evaluate", model, new, "--warmup", "-1"]) == 1
    assert main(["inspect", model]) == 0
    assert "verdict on y+1: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "is_known"),
    [
        (lambda rows: rows, True),
        (lambda rows: [*rows, *([str(200 + day), "b", "1", "red"] for day in range(9))], True),
        (lambda rows: [[*r[:2], r[2] and f"{float(r[2]) + 1:.5f}", r[3]] for r in rows], False),
        (lambda rows: [r for r in rows if int(r[0]) >= 160], False),
    ],
)
def test_rows_of_the_training_are_noticed_in_another_file(trained, tmp_path, change, is_known):
    found = evaluate_file(trained[0].model, new_file(trained, tmp_path, change))
    assert found["has_training_rows"] is is_known
    assert not found["is_training_file"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [[*r[:3], "blue"] for r in rows], "line 2, column 'colour': 'blue' is none"),
        (lambda rows: [[*r[:2], "x", r[3]] for r in rows], "'y'"),
        (lambda rows: rows[:1], "holds no target to judge"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(trained, tmp_path, change, words):
    with pytest.raises(DataError, match=words):
        evaluate_file(trained[0].model, new_file(trained, tmp_path, change))


def test_absent_columns_are_named(trained, tmp_path):
    path = tmp_path / "new.csv"
    path.write_text("day,y,colour\n1,2,red\n2,3,red\n3,3,red\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no column 'g'.*--group"):
        evaluate_file(trained[0].model, path)
    assert evaluate_file(trained[0].model, path, group=())["num_streams"] == 1
    path.write_text("day,g,colour\n1,a,red\n", encoding="utf-8")
    with pytest.raises(DataError, match="no column 'y'"):
        evaluate_file(trained[0].model, path)


def test_classes_that_the_model_does_not_know_are_counted(tmp_path, capsys):
    rng = np.random.default_rng(4)
    x = rng.normal(size=200)
    path = write_csv(tmp_path, x=x, kind=np.where(x + rng.normal(size=200) > 0, "up", "down"))
    config = TrainingConfig(path=path, predict=("kind",), inputs=("x",), epochs=2, horizon=(0,))
    train_to_file(config, tmp_path / "m.safetensors")
    new = tmp_path / "new.csv"
    new.write_text("x,kind\n" + "1,up\n-1,down\n0,sideways\n1,\n" * 20, encoding="utf-8")
    assert main(["evaluate", str(tmp_path / "m.safetensors"), str(new)]) == 0
    text = capsys.readouterr().out
    assert "classes that the model does not know are not judged: 20 rows of kind" in text
    assert "40 targets" in text
    assert "logistic regression on one row" in text


def trained_on(directory, path, **options):
    """Train a little, and return the model."""
    config = TrainingConfig(path=str(path), epochs=1, layers=("gru:3",), **options)
    return train_to_file(config, directory / "m.safetensors").model


@pytest.mark.parametrize("classes", [["01", "02", "03"], ["1", "2", "3"], ["ab", "cd", "07"]])
def test_classes_are_read_as_they_were_in_training(tmp_path, classes):
    """A file that holds but those that look like numbers is read so too."""
    rng = np.random.default_rng(4)
    path = write_csv(tmp_path, x=rng.normal(size=120), label=rng.choice(classes, 120))
    categorical = () if "ab" in classes else ("label",)
    model = trained_on(tmp_path, path, predict=("label",), categorical=categorical, horizon=(0,))
    assert {item.name for item in model.spec.outputs} == set(classes)
    new = tmp_path / "new"
    new.mkdir()
    path = write_csv(new, x=rng.normal(size=40), label=classes[2:] * 40)
    found = evaluate_file(model, path)
    assert found["unknown_classes"] == {}
    assert found["comparison"]["label"]["num_targets"] == 40


def test_unknown_classes_of_arrays_are_counted(tmp_path):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(30, 10, 2))
    np.savez(tmp_path / "a.npz", X=x, y=np.arange(300).reshape(30, 10) % 3)
    np.savez(tmp_path / "b.npz", X=x, y=np.arange(300).reshape(30, 10) % 5)
    model = trained_on(tmp_path, tmp_path / "a.npz")
    found = evaluate_file(model, tmp_path / "b.npz")
    assert list(found["unknown_classes"].values()) == [120]
    [compared] = found["comparison"].values()
    assert compared["num_targets"] == 180


@pytest.mark.parametrize("embedding_size", [0, 4])
def test_a_token_that_the_model_does_not_know_is_named(tmp_path, embedding_size):
    ids = np.arange(300, dtype=np.uint32)[None] % 10
    np.savez(tmp_path / "a.npz", X=ids)
    model = trained_on(tmp_path, tmp_path / "a.npz", embedding_size=embedding_size)
    ids[0, 7] = 12
    np.savez(tmp_path / "b.npz", X=ids)
    words = "row 8, column 'token': '12' is no token of the model's, 0 to 9"
    with pytest.raises(DataError, match=words):
        evaluate_file(model, tmp_path / "b.npz")
    with pytest.raises(DataError, match=words):
        predict_file(model, tmp_path / "b.npz", tmp_path / "out.csv")


def test_a_target_without_a_value_is_left_out_and_told(tmp_path, capsys):
    rng = np.random.default_rng(6)
    path = write_csv(tmp_path, x=rng.normal(size=200), y=rng.normal(size=200))
    trained_on(tmp_path, path, predict=("x", "y"), inputs=("x",))
    new = tmp_path / "new.csv"
    new.write_text("x,y\n" + "".join(f"{v},\n" for v in rng.normal(size=60)), encoding="utf-8")
    assert main(["evaluate", str(tmp_path / "m.safetensors"), str(new), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["not_judged"] == ["y+1"]
    assert list(found["errors"]) == list(found["comparison"]) == ["x+1"]
    assert main(["evaluate", str(tmp_path / "m.safetensors"), str(new)]) == 0
    text = capsys.readouterr().out
    assert "no value of y+1 to judge" in text
    assert "error of y+1" not in text


def test_rows_before_the_first_value_of_a_target_learned_as_changes_are_not_judged(tmp_path):
    """The first known value is no change from what stands for the missing ones."""
    level = 3 * np.arange(300) + np.arange(300) % 3
    cells = [*[""] * 40, *level[40:]]
    path = write_csv(tmp_path, y=cells, x=np.arange(300) % 7)
    model = trained_on(tmp_path, path, predict=("y",))
    assert model.spec.outputs[0].difference_of == "y"
    whole = evaluate_file(model, path)
    late = tmp_path / "late"
    late.mkdir()
    path = write_csv(late, y=cells[40:], x=np.arange(40, 300) % 7)
    assert whole["comparison"]["y+1"]["num_targets"] == 259
    for name, errors in evaluate_file(model, path)["baselines"].items():
        assert whole["baselines"][name]["y+1"] == pytest.approx(errors["y+1"], rel=1e-6)


def test_inspect_shows_no_escape_sequence_of_a_report(trained, tmp_path, capsys):
    model = trained[0].model
    report = json.loads(json.dumps(model.spec.training))
    report["comparison"]["y+1"]["verdict"] = "fine \x1b[2J"
    spec = replace(model.spec, training=report)
    Model(spec, model.parameters).save(tmp_path / "m.safetensors")
    assert main(["inspect", str(tmp_path / "m.safetensors")]) == 0
    assert r"verdict on y+1: fine \x1b[2J" in capsys.readouterr().out
    report["comparison"]["y+1"]["against"] = {"constant": 3}
    Model(replace(spec, training=report), model.parameters).save(tmp_path / "m.safetensors")
    assert main(["inspect", str(tmp_path / "m.safetensors")]) == 0
    assert "comparison" in capsys.readouterr().out  # as plain facts


def test_a_model_without_or_with_a_damaged_report_is_refused(trained, tmp_path):
    model, path = trained[0].model, trained[1]
    report = model.spec.training

    def refused(training, words, **changes):
        spec = replace(model.spec, training=training, **changes)
        with pytest.raises(ModelFileError, match=words):
            evaluate_file(Model(spec, model.parameters), path)

    refused({}, "no report of a training")
    refused(report | {"config": 3}, "no report of a training")
    refused(report | {"config": report["config"] | {"horizon": "x"}}, "damaged: horizon")
    refused(report | {"config": report["config"] | {"horizon": -1}}, "damaged: targets")
    refused(report | {"config": report["config"] | {"predict": ["y", "g"]}}, "damaged: targets")
    refused(report | {"fitted": {}}, "no fitted baselines of 'y\\+1'")
    refused(report, "no fitted baselines of 'z'", outputs=(OutputSpec("z"),))


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize(
    "hostile",
    [
        [],
        *({name: 5} for name in ("delimiter", "encoding", "tokens", "decimal", "date_format")),
        *({name: []} for name in ("delimiter", "encoding", "tokens", "decimal", "thousands")),
        *({name: "no such \0"} for name in ("delimiter", "encoding", "tokens", "decimal")),
        *({name: 5} for name in ("na", "time_features", "group")),
        *({name: [1]} for name in ("na", "time_features", "group")),
        *({name: [[]]} for name in ("na", "time_features", "group")),
        {"time": ["day"]},
    ],
)
def test_a_report_that_says_nonsense_of_its_data_is_refused(
    trained, tmp_path, capsys, command, hostile
):
    model, path = trained[0].model, trained[1]
    config = model.spec.training["config"]
    report = model.spec.training | {"config": config | hostile if hostile else hostile}
    Model(replace(model.spec, training=report), model.parameters).save(tmp_path / "m.safetensors")
    more = ["-o", str(tmp_path / "out.csv")] if command == "predict" else []
    assert main([command, str(tmp_path / "m.safetensors"), str(path), *more]) == 1
    said = capsys.readouterr().err
    assert "the model's report is damaged: " in said
    assert "Traceback" not in said
