"""The report of a training as a picture."""

import argparse
import sys

import numpy as np
import pytest

import streamrnn
from streamrnn.commands import train as command
from streamrnn.errors import TrainingError
from streamrnn.training.run.figure import check_figure
from tests.support.tables import noisy_sine, write_csv


def run(*words):
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def drawn(monkeypatch):
    """Return the panels of every picture that is drawn."""
    figure = pytest.importorskip("matplotlib.figure")
    seen = []
    original = figure.Figure.savefig

    def spy(self, *arguments, **options):
        seen.append(self.axes)
        return original(self, *arguments, **options)

    monkeypatch.setattr(figure.Figure, "savefig", spy)
    return seen


@pytest.mark.parametrize("base", [1e3, 1e9])
def test_numbers_are_drawn_in_the_units_of_the_table(tmp_path, drawn, base):
    y = base + 50 * noisy_sine(200)
    data = write_csv(tmp_path, y=y)
    words = (data, "--predict", "y", "--layers", "gru:3", "--epochs", 4)
    files = ("-o", tmp_path / "m.safetensors", "--report", tmp_path / "m.png")
    for _ in range(2):  # one of ours is replaced
        assert run(*words, *files) == 0
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    losses, errors, forecast, residuals, history, gradients = drawn[0]
    assert history.get_title().startswith("loss by history given")
    assert gradients.get_title() == "gradient by lag"
    assert len(losses.lines[0].get_xdata()) == 4
    assert "this model" in [label.get_text() for label in errors.get_yticklabels()]
    truth, guess = (line.get_ydata() for line in forecast.lines)
    np.testing.assert_allclose(truth, y[160:], atol=1e-3)
    np.testing.assert_array_equal(forecast.lines[0].get_xdata(), np.arange(160, 200))
    assert np.sum([bar.get_height() for bar in residuals.patches]) == 40
    assert f"mean {np.mean(truth - guess):.3g}" in residuals.get_title()
    assert np.abs(guess - y[160:]).max() < 200


def test_quantiles_are_drawn_as_a_band_around_their_median(tmp_path, drawn):
    data = write_csv(tmp_path, y=noisy_sine(200))
    words = (data, "--predict", "y", "--layers", "gru:3", "--updates", 400, "--horizon", "1,2")
    files = ("-o", tmp_path / "m.safetensors", "--report", tmp_path / "m.png")
    assert run(*words, "--quantiles", "0.1,0.4,0.9", *files) == 0
    _, errors, *panels, _, _ = drawn[0]
    assert errors.get_title() == "test error of y+1 q0.4"
    assert len(panels) == 4  # a row for each horizon, not for each quantile
    found = streamrnn.predict(tmp_path / "m.safetensors", data)
    for forecast, ahead in ((panels[0], 1), (panels[2], 2)):
        assert [line.get_label() for line in forecast.lines] == ["truth", "q0.4"]
        rows = forecast.lines[1].get_xdata() - ahead
        np.testing.assert_allclose(
            forecast.lines[1].get_ydata(), found[f"y_h{ahead}_q0.4"][rows], atol=1e-5
        )
        [band] = forecast.collections
        assert band.get_label() == "q0.1 to q0.9"
        corners = band.get_paths()[0].vertices
        for quantile in ("q0.1", "q0.9"):
            for row in rows[[0, 20, -1]]:
                point = [row + ahead, found[f"y_h{ahead}_{quantile}"][row]]
                assert np.abs(corners - point).sum(axis=1).min() < 1e-4


def test_classes_are_drawn_as_what_is_taken_for_what(tmp_path, drawn):
    letters = [["a", "b", "c"][k % 3] for k in range(200)]
    data = write_csv(tmp_path, letter=letters)
    words = (data, "--predict", "letter", "--layers", "gru:3", "--epochs", 2)
    files = ("-o", tmp_path / "m.safetensors", "--report", tmp_path / "m.png")
    assert run(*words, *files) == 0
    _, _, confusion, sure, _, _ = drawn[0]
    assert [label.get_text() for label in confusion.get_yticklabels()] == ["a", "b", "c"]
    np.testing.assert_allclose(confusion.images[0].get_array().sum(axis=1), 1.0)
    assert np.sum([bar.get_height() for bar in sure.patches]) == 40


def test_what_cannot_be_drawn_is_refused_before_the_training(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"\x89PNG of my cat")
    with pytest.raises(TrainingError, match="is no picture of a training"):
        check_figure(mine)
    with pytest.raises(TrainingError, match=r"name it \.png"):
        check_figure(tmp_path / "m.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(TrainingError, match=r"pip install 'streamrnn\[plot\]'"):
        check_figure(tmp_path / "m.png")


def test_many_classes_are_drawn_in_blocks_as_few_are(tmp_path, drawn, monkeypatch):
    letters = [["a", "b", "c"][k * k % 11 % 3] for k in range(200)]
    words = (write_csv(tmp_path, letter=letters), "--predict", "letter", "--layers", "gru:3")
    for name in ("few", "many"):
        files = ("-o", tmp_path / f"{name}.safetensors", "--report", tmp_path / f"{name}.png")
        assert run(*words, "--epochs", 2, *files) == 0
        monkeypatch.setattr("streamrnn.training.evaluate.MAX_KEPT", 1)
        monkeypatch.setattr("streamrnn.training.evaluate.NetworkOutputs.of", None)
        monkeypatch.setattr("streamrnn.training.run.figure.BLOCK_ELEMENTS", 3 * 7)
    few, many = drawn
    np.testing.assert_array_equal(few[2].images[0].get_array(), many[2].images[0].get_array())
    heights = [[bar.get_height() for bar in axes[3].patches] for axes in (few, many)]
    assert heights[0] == heights[1]
    assert sum(heights[0]) == 40
