"""`streamrnn export` as a command."""

from __future__ import annotations

import numpy as np
import pytest

from streamrnn.commands import export
from streamrnn.exporters import network
from streamrnn_server.cli import main
from tests.support.models import random_model


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.safetensors"
    random_model(np.random.default_rng(0), [("gru", 6)]).save(path)
    return path


@pytest.mark.parametrize("target", ["onnx", "torch"])
def test_without_the_framework_the_command_says_unproven(
    monkeypatch, capsys, model_file, tmp_path, target
):
    if target == "onnx":
        pytest.importorskip("onnx")
    monkeypatch.setattr(export, "is_installed", lambda package: False)
    out = tmp_path / "out"
    assert main(["export", str(model_file), "--to", target, "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "UNPROVEN" in printed
    assert ("class Net(torch.nn.Module)" in printed) == (target == "torch")
    assert main(["import", str(out), "-o", str(tmp_path / "back.safetensors")]) == 0


def test_a_framework_that_answers_otherwise_keeps_the_file_from_being_written(
    monkeypatch, capsys, model_file, tmp_path
):
    def another(model, exported, tolerance):
        def answers(x):
            y = np.random.default_rng(0).standard_normal((*x.shape[:2], model.spec.output_size))
            return [("a sequence", y), ("step by step", y)]

        exported = network.Exported(exported.data, "torch", answers)
        return network.prove_export(model, exported, tolerance)

    monkeypatch.setattr(export, "is_installed", lambda package: True)
    monkeypatch.setattr(export, "prove_export", another)
    out = tmp_path / "out"
    assert main(["export", str(model_file), "--to", "torch", "-o", str(out)]) == 1
    assert "check failed: beyond" in capsys.readouterr().err
    assert not out.exists()
