"""`streamrnn train` as it is run: signals, files that are kept, settings, what is printed."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from rich.console import Console

from streamrnn import Model
from streamrnn.commands import inspect as inspect_command
from streamrnn.commands import predict as predict_command
from streamrnn.commands import train as command
from streamrnn.errors import DataError, TrainingError
from streamrnn.training import TrainingConfig, train_to_file
from streamrnn.training.config_file import SECTIONS
from streamrnn.training.fit.stop import StopSignals
from streamrnn.training.fit.trainer import Evaluation
from streamrnn.training.report import report_lines
from streamrnn.training.run.curve import learning_curve
from streamrnn.training.run.epoch_log import EpochLog
from streamrnn.training.run.progress import TrainingProgress
from tests.support.program import run_python, streamrnn
from tests.support.tables import noisy_sine, write_csv
from tests.training.run.stop import StopAfter

SMALL = ("--predict", "y", "--layers", "gru:3", "--epochs", "2")


def arguments(*words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args([str(word) for word in words])


def run(*words):
    return command.run(arguments(*words))


@pytest.fixture
def data(tmp_path):
    return Path(write_csv(tmp_path, y=noisy_sine(120), x=np.arange(120) % 7))


def start(*words, **options):
    return subprocess.Popen(
        streamrnn(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_best_so_far_and_says_how_to_go_on(data, tmp_path, number, code):
    path, log = tmp_path / "m.safetensors", tmp_path / "log"
    os.mkfifo(log)
    words = ["train", data, "--predict", "y", "--layers", "gru:3", "-o", path, "--log", log]
    words += ["--epochs", 1_000_000, "--patience", 1_000_000]
    num_epochs = 0
    for resume in ([], ["--resume"]):
        process = start(*words, *resume)
        try:
            with open(log, encoding="utf-8") as lines:
                seen = [json.loads(lines.readline())["epoch"] for _ in range(num_epochs + 2)]
                process.send_signal(number)
                seen += [json.loads(line)["epoch"] for line in lines]
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == code
        assert "give the same command with --resume" in err
        assert "Traceback" not in err
        assert "stopped before its end" in out
        assert seen == list(range(1, len(seen) + 1))
        num_epochs = len(seen)
        assert Model.load(path).spec.training["updates"]["num_epochs"] == num_epochs
    assert (tmp_path / "m.safetensors.checkpoint").exists()


TWO_SIGNALS = """
import signal
from streamrnn.training.fit.stop import StopSignals

before = signal.getsignal(signal.SIGTERM)
for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
    with StopSignals() as stop:
        assert not stop()
        signal.raise_signal(number)
        assert stop() and stop.received == number
        try:
            signal.raise_signal(number)
        except error:
            print(error.__name__)
assert signal.getsignal(signal.SIGTERM) is before
"""


def test_the_second_signal_ends_at_once():
    # In a process of its own: a signal that comes late must not end those who test.
    ran = run_python(TWO_SIGNALS)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["KeyboardInterrupt", "SystemExit"]


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("how", ["itself", "symlink", "hardlink", "another path"])
def test_the_data_are_never_written_over(data, tmp_path, how):
    before = data.read_bytes()
    output = {"itself": data, "another path": tmp_path / "." / "data.csv"}.get(
        how, tmp_path / "m.safetensors"
    )
    if how == "symlink":
        output.symlink_to(data)
    elif how == "hardlink":
        output.hardlink_to(data)
    for words in ([output], [tmp_path / "n.safetensors", "--log", output]):
        with pytest.raises(TrainingError, match="is the data"):
            run(data, *SMALL, "-o", *words)
    assert data.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"data.csv", output.name}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", b"do not lose me", "is no model of StreamRNN"),
        ("weights.safetensors", b"\x02\0\0\0\0\0\0\0{}", "is no model of StreamRNN"),
        ("m.safetensors.checkpoint", b"mine", "is no checkpoint of a training"),
        ("log", b"mine", "is no log of a training"),
    ],
)
def test_a_file_that_is_not_ours_is_never_written_over(data, tmp_path, name, content, words):
    file = tmp_path / name
    file.write_bytes(content)
    output = file if "model" in words else tmp_path / "m.safetensors"
    log = file if name == "log" else tmp_path / "other"
    with pytest.raises(TrainingError, match=words):
        run(data, *SMALL, "-o", output, "--log", log)
    assert file.read_bytes() == content


def test_outputs_are_different_files(data, tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(TrainingError, match="is the model; write the log to another file"):
        run(data, *SMALL, "-o", path, "--log", path)
    for log, words in (
        ("m.toml", "is the configuration"),
        ("m.safetensors.checkpoint", "is the ch"),
    ):
        with pytest.raises(TrainingError, match=words):
            run(data, *SMALL, "-o", path, "--log", tmp_path / log)
    with pytest.raises(TrainingError, match="is a directory"):
        run(data, *SMALL, "-o", tmp_path)
    assert not path.exists()


def test_a_model_is_replaced(data, tmp_path):
    path = tmp_path / "m.safetensors"
    assert run(data, *SMALL, "-o", path) == 0
    before = path.read_bytes()
    assert run(data, *SMALL, "--seed", 1, "-o", path) == 0
    assert path.read_bytes() != before


def test_a_configuration_of_the_user_is_never_rewritten(data, tmp_path):
    text = '# mine\n[data]\npath = "data.csv"\npredict = ["y"]\n[training]\nepochs = 2\n'
    mine, path = tmp_path / "m.toml", tmp_path / "m.safetensors"
    mine.write_text(text, encoding="utf-8")
    assert run(mine, "--set", "layers=gru:3", "--set", "training.seed=4", "-o", path) == 0
    assert mine.read_text(encoding="utf-8") == text
    used = TrainingConfig.read(tmp_path / "m.trained.toml")
    assert (used.layers, used.seed, used.epochs) == (("gru:3",), 4, 2)
    # Neither is one that lies there by chance.
    assert run(data, *SMALL, "-o", path) == 0
    assert mine.read_text(encoding="utf-8") == text
    # What was written is written again, and what says it all already is left as it is.
    before = path.read_bytes()
    written = tmp_path / "m.trained.toml"
    assert run(written, "-o", tmp_path / "again.safetensors") == 0
    assert (tmp_path / "again.safetensors").read_bytes() == before
    kept = written.read_text(encoding="utf-8") + "# a comment\n"
    written.write_text(kept, encoding="utf-8")
    assert run(written, "-o", path) == 0
    assert written.read_text(encoding="utf-8") == kept
    assert path.read_bytes() == before


def test_fewer_inputs_than_a_configuration_names(data, tmp_path):
    path, second = tmp_path / "m.safetensors", tmp_path / "second.safetensors"
    assert run(data, *SMALL, "-o", path) == 0
    assert set(TrainingConfig.read(tmp_path / "m.toml").missing) == {"x", "y"}
    assert run(tmp_path / "m.toml", "--inputs", "y", "-o", second) == 0
    assert TrainingConfig.read(tmp_path / "second.toml").inputs == ("y",)
    # But what is asked for in the same breath must make sense.
    with pytest.raises(TrainingError, match=r"m\.toml: missing names 'x', which is no input"):
        run(tmp_path / "m.toml", "--inputs", "y", "--missing", "x=hold", "-o", second)


EXAMPLES = {
    "str": "a",
    "int": 3,
    "float": 0.25,
    "bool": True,
    "tuple[str, ...]": ("a", "b"),
    "tuple[int, ...]": (1, 24),
    "tuple[float, ...]": (0.25, 0.5),
    "dict": {"a": "hold"},
}


@pytest.mark.parametrize(
    "name", [name for names in SECTIONS.values() for name in names if name != "path"]
)
def test_every_setting_is_an_option_and_can_be_set(name):
    special: dict[str, Any] = {
        "layers": ("lstm:3", "gru:2"),
        "split": (0.5, 0.25, 0.25),
        "loss": "mse",
        "loss_on": "last",
        "tokens": "word",
        "time_features": ("hour", "elapsed"),
        "split_by": "stream",
        "feedback": ("head",),
        "delimiter": ";",
        "encoding": "latin-1",
        "decimal": ",",
        "thousands": " ",
        "skip_rows": ("2", "4-5"),
        "date_format": "%d.%m.%Y",
        "schedule": "constant",
        "initialisation": "uniform",
        "optimiser": "sgd",
    }
    kind = str(TrainingConfig.__dataclass_fields__[name].type)
    value = special.get(name, EXAMPLES.get(kind, EXAMPLES["dict"]))
    if isinstance(value, dict):
        text, item = "a=hold", f"{name}.a=hold"
    else:
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        item = f"{name}={text}"
    option = f"--{name.replace('_', '-')}"
    words = (option,) if value is True else (option, text)
    if value is True:
        item = item.lower()
    if name == "na":  # a cell may hold a comma
        text, value = "a,b", ("a,b",)
        item, words = 'na=["a,b"]', (option, "a,b")
    config = TrainingConfig(path="x.csv", **{name: value})
    assert command.make_config(arguments("x.csv", "-o", "m", *words)) == config
    assert command.make_config(arguments("x.csv", "-o", "m", "--set", item)) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs", "write KEY=VALUE"),
        ("epoch=3", r"'epoch' is no setting \(did you mean 'epochs'\?\)"),
        ("path=other.csv", "is no setting"),
        ("epochs=many", "epochs is 'many'; it must be a number"),
        ("epochs=1.5", "epochs is 1.5; it must be a whole number"),
        ("missing=hold", "is no setting"),
        ("epochs.a=3", "is no setting"),
        ("refit=yes", "refit is 'yes'; it must be true or false"),
        ("inputs=[1", "cannot be read"),
        ("inputs=[1, 2]", "it must be a list of strings"),
    ],
)
def test_what_cannot_be_set_is_refused(text, words):
    with pytest.raises(TrainingError, match=words):
        command.make_config(arguments("x.csv", "-o", "m", "--set", text))


def test_names_with_commas_are_quoted():
    for words in (("--inputs", '"a,b", c'), ("--set", 'inputs=["a,b", "c"]')):
        config = command.make_config(arguments("x.csv", "-o", "m", *words))
        assert config.inputs == ("a,b", "c")


def test_json_is_all_that_is_printed(data, tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    assert run(data, *SMALL, "--json", "-o", path) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"] == str(path)
    assert facts["configuration"] == str(tmp_path / "m.toml")
    assert facts["was_stopped"] is False
    assert facts["report"] == Model.load(path).spec.training


def test_the_log_has_a_line_for_every_epoch(data, tmp_path):
    path, log = tmp_path / "m.safetensors", tmp_path / "log"
    config = TrainingConfig(path=str(data), predict=("y",), layers=("gru:3",), epochs=2)
    assert run(data, *SMALL, "-o", path, "--log", log) == 0
    result = train_to_file(config, tmp_path / "n.safetensors")
    seen = [json.loads(line) for line in lines_of(log)]
    assert len(seen) == len(result.history) == 2
    for line, epoch in zip(seen, result.history, strict=True):
        del line["seconds"]
        assert Evaluation(**line) == epoch
    assert run(data, *SMALL, "-o", path, "--log", log) == 0  # a log of ours is begun anew
    assert len(lines_of(log)) == 2


def test_a_reader_of_the_log_that_has_gone_does_not_end_the_training():
    reading, writing = os.pipe()
    epochs = [Evaluation(k, 3, 1.0, 1.0, 1.0) for k in (1, 2, 3)]
    with EpochLog(Path(f"/dev/fd/{writing}")) as log:
        log(epochs[0])
        assert json.loads(os.read(reading, 4096))["epoch"] == 1
        os.close(reading)
        log(epochs[1])
        log(epochs[2])
    os.close(writing)


def test_the_learning_curve_is_drawn_where_it_is_asked_for(data, tmp_path, capsys):
    assert run(data, *SMALL, "--plot", "-o", tmp_path / "m.safetensors") == 0
    assert "loss by update" in capsys.readouterr().out
    assert run(data, *SMALL, "-o", tmp_path / "m.safetensors") == 0
    assert "loss by update" not in capsys.readouterr().out  # no terminal


def test_a_learning_curve_falls_from_left_to_right():
    history = [Evaluation(k, 40, 2.0 / k, 1.0 / k, 0.0, 0.0, 5 * k) for k in range(1, 41)]
    lines = learning_curve(history, 60, 14).splitlines()
    assert max(len(line) for line in lines) <= 60
    assert len(lines) == 14
    dots = [(line.index("·"), k) for k, line in enumerate(lines) if "·" in line]
    assert [k for _, k in sorted(dots)] == sorted(k for _, k in dots)
    assert "200" in lines[-1]
    for few in ([], history[:1], [Evaluation(1, 2, float("inf"), float("nan"), 0.0)]):
        assert "loss by update" in learning_curve(few)


@pytest.mark.parametrize(
    ("package", "words"), [("threadpoolctl", ()), ("plotext", ("--plot",))], ids=lambda x: str(x)
)
def test_a_package_that_is_missing_is_named(data, tmp_path, monkeypatch, package, words):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TrainingError, match=rf"{package}: pip install 'streamrnn\[train\]'"):
        run(data, *SMALL, *words, "-o", tmp_path / "m.safetensors")


@pytest.mark.parametrize("threads", [None, 2])
def test_matrix_products_take_as_many_threads_as_they_are_given(data, tmp_path, threads):
    seen: list[int] = []

    def look(epoch):
        seen.extend(
            pool["num_threads"]
            for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"
        )

    config = TrainingConfig(path=str(data), predict=("y",), layers=("gru:3",), epochs=1)
    given = {} if threads is None else {"threads": threads}
    with threadpoolctl.threadpool_limits(4, user_api="blas"):
        train_to_file(config, tmp_path / "m.safetensors", look, **given)
    if not seen:
        pytest.skip("this NumPy's BLAS is not one that threadpoolctl knows")
    assert set(seen) == {threads or 1}


def test_a_reader_of_the_progress_that_has_gone_does_not_end_the_training(data, tmp_path):
    path = tmp_path / "m.safetensors"
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        streamrnn("train", data, *SMALL, "-o", path),
        stdout=subprocess.PIPE,
        stderr=writing,
        timeout=120,
        check=False,
    )
    os.close(writing)
    assert process.returncode == 0
    assert Model.load(path).spec.training["updates"]["num_epochs"] == 2


class _Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


def test_progress_that_cannot_be_written_is_left_out():
    with TrainingProgress(Console(file=_Full())) as progress:
        for epoch in (1, 2):
            progress(Evaluation(epoch, 2, 0.5, 0.25, 0.125))


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["predict", "inspect"])
def test_a_full_disk_is_the_fault_of_standard_output(data, tmp_path, words, unbuffered):
    path = tmp_path / "m.safetensors"
    assert run(data, *SMALL, "-o", path) == 0
    rest = [path, data, "-o", "-"] if words == "predict" else [path]
    with open("/dev/full", "w", encoding="utf-8") as full:
        process = subprocess.run(
            streamrnn(words, *rest),
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert process.returncode == 1
    assert process.stderr == "streamrnn: error: standard output: No space left on device\n"


def test_predictions_are_not_written_over_the_model(data, tmp_path):
    path, link = tmp_path / "m.safetensors", tmp_path / "link.csv"
    assert run(data, *SMALL, "-o", path) == 0
    before = path.read_bytes()
    link.symlink_to(path)
    parser = argparse.ArgumentParser()
    predict_command.configure(parser)
    for output in (path, link):
        with pytest.raises(DataError, match="is the model"):
            predict_command.run(parser.parse_args([str(path), str(data), "-o", str(output)]))
    assert path.read_bytes() == before


def test_a_broken_pipe_is_quiet(data, tmp_path):
    path = tmp_path / "m.safetensors"
    assert run(data, *SMALL, "-o", path) == 0
    long = tmp_path / "long.csv"
    long.write_text("y,x\n" + "0.5,1\n" * 20_000, encoding="utf-8")
    process = start("predict", path, long, "-o", "-")
    process.stdout.readline()
    process.stdout.close()
    with suppress(ValueError):
        process.communicate(timeout=120)
    assert process.wait(timeout=120) == 1
    assert process.stderr.closed or not process.stderr.read()


def test_inspect_shows_the_parts_in_their_order(data, tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    assert run(data, *SMALL, "-o", path) == 0
    capsys.readouterr()
    parser = argparse.ArgumentParser()
    inspect_command.configure(parser)
    assert inspect_command.run(parser.parse_args([str(path)])) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "by part:" in line)
    words = line.split("by part:")[1].replace(",", "").split()
    assert words[::2] == ["train", "validation", "test"]


@pytest.mark.parametrize(
    ("length", "most"), [({"updates": 60}, "--updates 240"), ({"epochs": 3}, "--epochs 0")]
)
def test_best_weights_at_the_end_are_said_with_what_to_do(data, tmp_path, length, most):
    config = TrainingConfig(
        path=str(data), predict=("y",), layers=("gru:3",), batch_size=8, **length
    )
    report = train_to_file(config, tmp_path / "m.safetensors").report
    assert report["updates"]["best_update"] == report["updates"]["num_updates"]
    text = "\n".join(report_lines(report))
    assert "the best weights are the last ones" in text
    assert most in text
    report["updates"]["best_update"] = 1
    assert "the last ones" not in "\n".join(report_lines(report))
    stopped = train_to_file(
        config.replace(epochs=50, updates=0), tmp_path / "m.safetensors", stop=StopAfter(3)
    ).report
    text = "\n".join(report_lines(stopped))
    assert "stopped before its end: --resume goes on" in text
    assert "the last ones" not in text
