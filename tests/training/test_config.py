"""Training configurations: TOML round trips, and refused values."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn.commands.train import configure, make_config
from streamrnn.errors import TrainingError
from streamrnn.model.spec import LayerSpec
from streamrnn.training.config import TrainingConfig
from streamrnn.training.config_file import SECTIONS
from streamrnn.training.data.reading.options import ReadOptions
from streamrnn.training.layer_list import parse_layers


def read(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    return TrainingConfig.read(path)


def test_every_setting_has_its_section_and_comment():
    named = [name for section in SECTIONS.values() for name in section]
    assert sorted(named) == sorted(TrainingConfig.__dataclass_fields__)


def test_toml_there_and_back(tmp_path):
    config = TrainingConfig(
        path=str(tmp_path / "data" / "x.csv"),
        predict=("a b", 'with "quotes" and \\'),
        missing={"a.b": "hold", "ü": "mask"},
        layers=("lstm:32", "gru:16"),
        feedback=("head:layer2", "layer2"),
        learning_rate=1e-05,
        split=(0.5, 0.25, 0.25),
        difference=(),
        seed=2**40,
    )
    config.write(tmp_path / "config.toml")
    text = (tmp_path / "config.toml").read_text(encoding="utf-8")
    assert 'path = "data/x.csv"' in text
    again = TrainingConfig.read(tmp_path / "config.toml")
    assert again == config


@given(st.text(max_size=20), st.floats(1e-9, 10.0), st.integers(0, 2**63 - 1))
def test_any_name_and_number_survive_toml(tmp_path_factory, name, rate, seed):
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    config = TrainingConfig(
        path=str(path.parent / "x.csv"),
        predict=(name,),
        missing={name: "hold"},
        learning_rate=rate,
        seed=seed,
    )
    config.write(path)
    assert TrainingConfig.read(path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data", "not valid TOML"),
        ("[dta]\npath='x'", r"'dta' \(did you mean 'data'\?\)"),
        ("path = 'x'", "unknown section or key 'path'"),
        ("[data]\npth = 'x'", "'pth' in .*did you mean 'path'"),
        ("[data]\nepochs = 3", r"belongs into \[training\]"),
        ("[training]\nepochs = 3", "names no data"),
        ("[data]\npath = 'x'\n[training]\nepochs = 'many'", "epochs is 'many'.*a whole number"),
        ("[data]\npath = 'x'\n[training]\nepochs = true", "a whole number"),
        ("[data]\npath = 'x'\npredict = [1]", "a list of strings"),
        ("[data]\npath = 'x'\nsplit = [0.5, 0.5]", "three shares"),
        ("[data]\npath = 'x'\nsplit = [0.9, 0.2, -0.1]", "three shares"),
        ("[data]\npath = 'x'\n[data.missing]\na = 'held'", "did you mean 'hold'"),
        ("[data]\npath = 'x'\n[training]\nloss = 'hubr'", "did you mean 'huber'"),
        ("[data]\npath = 'x'\n[training]\nlearning_rate = nan", "must be from"),
        ("[data]\npath = 'x'\n[training]\nclip_norm = 0.0", "must be from"),
        ("[data]\npath = 'x'\n[model]\nlayers = ['lsmt:3']", "did you mean 'lstm'"),
        ("[data]\npath = 'x'\n[model]\nlayers = ['lstm']", "such as lstm:32"),
    ],
)
def test_bad_configurations_say_what_is_wrong(tmp_path, text, message):
    with pytest.raises(TrainingError, match=message):
        read(tmp_path, text)


HEX = "0x" + "f" * 6000  # a number that cannot be written in decimal digits
DATA = "[data]\npath = 'x'\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{DATA}[training]\nepochs = {'9' * 5000}", "not valid TOML"),
        (f"{DATA}[training]\nepochs = {HEX}", "epochs is a number of 24000 bits"),
        (f"{DATA}[training]\nlearning_rate = {HEX}", "learning_rate is a number of 24000 bits"),
        (f"{DATA}split = [{HEX}, 0.1, 0.1]", "split is a list; it must be a list of numbers"),
        (f"[data]\npath = {HEX}", "path is a number of 24000 bits; it must be a string"),
        (f"{DATA}[training]\nseed = {2**63}", "seed is 9223372036854775808; it must be from 0"),
        ("[data]\npath = " + "[" * 5000 + "]" * 5000, "nested too deep"),
        ("[data]\npath" + ".a" * 3000 + " = 1", "path is a dict; it must be a string"),
        ("[data]\npath = 1979-05-27", "it must be a string"),
        (f"{DATA}split = [nan, nan, nan]", "three shares"),
        (f"{DATA}split = [inf, 0.1, 0.1]", "three shares"),
        (f"{DATA}[model]\nlayers = ['lstm:{'9' * 5000}']", "such as lstm:32"),
        (f"{DATA}[model]\nlayers = ['lstm:\u0663\u0664']", "such as lstm:32"),
        (f"{DATA}[model]\nlayers = ['lstm:-4']", "such as lstm:32"),
        (f"{DATA}[model]\nlayers = ['lstm:70000']", "from 1 to 65536"),
        (f"{DATA}[model]\nlayers = ['{'x' * 100_000}']", "unknown cell"),
        (f"{DATA}[training]\nloss = '{'x' * 100_000}'", "loss is"),
        (f"{DATA}{'n' * 100_000} = 1", "unknown key"),
        (f"[{'n' * 100_000}]", "unknown section"),
        ("#" * 2**20 + "\n", "larger than 1048576 bytes"),
        ("\0", "not valid TOML"),
    ],
    ids=range(21),
)
def test_a_configuration_that_was_made_to_hurt_is_refused_in_few_words(tmp_path, text, message):
    with pytest.raises(TrainingError, match=message) as caught:
        read(tmp_path, text)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_lines_may_end_as_on_windows(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(b"[data]\r\npath = 'x'\r\nhorizon = 3\r\n")
    assert TrainingConfig.read(path).horizon == (3,)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="cannot be opened"):
        TrainingConfig.read(tmp_path / "absent.toml")


def test_layers_are_parsed():
    assert parse_layers(("lstm:32", " gru:16")) == (LayerSpec("lstm", 32), LayerSpec("gru", 16))


def arguments(*options):
    parser = argparse.ArgumentParser()
    configure(parser)
    return make_config(parser.parse_args([*options, "-o", "m.safetensors"]))


def test_options_make_a_configuration():
    config = arguments(
        *("x.csv", "--predict", "a, b", "--layers", "gru:8,lstm:4", "--epochs", "3", "--seed", "5"),
        *("--batch-size", "4", "--missing", "a=b=mask", "--difference", ""),
        *("--feedback", "head, layer2"),
    )
    assert config == TrainingConfig(
        path="x.csv",
        predict=("a", "b"),
        layers=("gru:8", "lstm:4"),
        feedback=("head", "layer2"),
        epochs=3,
        seed=5,
        batch_size=4,
        missing={"a=b": "mask"},
        difference=(),
    )
    with pytest.raises(TrainingError, match="COLUMN=POLICY"):
        arguments("x.csv", "--missing", "hold")


def test_options_override_a_file(tmp_path):
    TrainingConfig(path=str(tmp_path / "x.csv"), epochs=7, seed=3).write(tmp_path / "c.toml")
    config = arguments(str(tmp_path / "c.toml"), "--seed", "4")
    assert (config.epochs, config.seed, config.path) == (7, 4, str(tmp_path / "x.csv"))


def test_more_outputs_than_a_model_may_have_are_refused_before_they_are_listed():
    horizons, quantiles = tuple(range(2000)), tuple((k + 1) / 1002 for k in range(1000))
    with pytest.raises(TrainingError, match=r"2000 horizons and 1000 quantiles.*2000000; at most"):
        TrainingConfig(path="x.csv", predict=("y",), horizon=horizons, quantiles=quantiles)
    with pytest.raises(TrainingError, match="horizon names 7 rows twice"):
        TrainingConfig(path="x.csv", horizon=(*range(900), 7))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"delimiter": 5}, "delimiter is 5; it must be a string"),
        ({"delimiter": []}, "delimiter is .*a string"),
        ({"encoding": 5}, "encoding is 5; it must be a string"),
        ({"na": "NA"}, "na is 'NA'; it must be a tuple of strings"),
        ({"na": (1,)}, "na is .*a tuple of strings"),
        ({"skip_rows": 3}, "skip_rows is 3; it must be a tuple of strings"),
    ],
)
def test_read_options_of_other_types_are_refused(settings, words):
    with pytest.raises(TrainingError, match=words):
        ReadOptions(**settings)
