"""The examples of docs/exporting.md run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streamrnn_server.cli import main
from tests.support.models import random_model

PAGE = (Path(__file__).parents[2] / "docs" / "exporting.md").read_text()
PACKAGES = {"ONNX": "onnxruntime", "PyTorch": "torch"}


@pytest.mark.slow
@pytest.mark.parametrize("target", PACKAGES)
def test_the_example_of_a_target_runs(target, tmp_path, monkeypatch, capsys):
    pytest.importorskip(PACKAGES[target], exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    random_model(np.random.default_rng(0), [("lstm", 8), ("gru", 5)]).save("model.safetensors")
    commands = [line for line in PAGE.splitlines() if line.startswith("streamrnn export")]
    (command,) = [line for line in commands if f"--to {target.lower().removeprefix('py')}" in line]
    assert main(command.split()[1:]) == 0
    printed = capsys.readouterr().out
    assert f"proved with {PACKAGES[target]}" in printed
    if target == "PyTorch":
        text = printed[printed.index("import torch") : printed.index("wrote ")]
        Path("net.py").write_text(text)
    example = re.search(rf"## {target}\n.*?```python\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    done = subprocess.run(
        [sys.executable, "-c", example[1]],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
