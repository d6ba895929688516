"""What a training cannot end with is refused before it begins."""

import os
import shutil
from importlib import import_module

import pytest

from streamrnn.errors import DataError, TrainingError
from streamrnn.training import TrainingConfig, train, train_to_file
from tests.support.tables import noisy_sine, write_csv


@pytest.fixture
def no_training(monkeypatch):
    def begun(*_):
        pytest.fail("the training has begun")

    monkeypatch.setattr(import_module("streamrnn.training.train"), "fit", begun)


def test_a_name_of_data_that_is_no_utf8_is_refused(tmp_path, no_training):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/gr\xf6sse.csv")
    try:
        shutil.copy(write_csv(tmp_path, y=noisy_sine(100)), path)
    except OSError:
        pytest.skip("this file system takes no such name")
    config = TrainingConfig(path=path, predict=("y",))
    for begin in (train, lambda config: train_to_file(config, tmp_path / "m.safetensors")):
        with pytest.raises(TrainingError, match=r"gr\\udcf6sse.csv.* is no UTF-8.*rename it"):
            begin(config)
    assert not list(tmp_path.glob("m.*"))


@pytest.mark.parametrize(
    "settings",
    [
        {"group": ("token",)},
        {"group": ("token",), "inputs": ("token",), "predict": ("token",)},
        {"categorical": ("token",)},
        {"time": "token"},
        {"time_features": ("hour",), "time": "auto"},
        {"missing": {"token": "hold"}},
        {"predict": ("no",)},
        {"inputs": ("token", "token")},
        {"split_by": "column:token"},
    ],
)
def test_columns_of_a_text_are_refused(tmp_path, no_training, settings):
    path = tmp_path / "book.txt"
    path.write_text("the cat sat on the mat. " * 60, encoding="utf-8")
    with pytest.raises((DataError, TrainingError), match=r"text|column"):
        train(TrainingConfig(path=str(path), tokens="char", **settings))
