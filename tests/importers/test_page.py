"""The examples of docs/importing.md run as they stand."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from streamrnn.importers.gates import SOURCE_GATES
from streamrnn_server.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "importing.md").read_text()
NEEDS = {"PyTorch": ["torch"], "ONNX": ["torch", "onnx"], "Keras": ["keras", "h5py"]}


@pytest.mark.slow
@pytest.mark.parametrize("source", NEEDS)
def test_the_example_of_a_source_runs(source, tmp_path, monkeypatch, capsys):
    for package in NEEDS[source]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    section = PAGE.split(f"## {source}\n")[1]
    found = re.match(r"\n```python\n(.*?)```\n\n```\nstreamrnn (.*?)\n```", section, re.DOTALL)
    assert found is not None
    done = subprocess.run(
        [sys.executable, "-c", found[1]],
        cwd=tmp_path,
        env={"KERAS_BACKEND": "torch", **os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    assert main(found[2].split()) == 0
    assert "proved with" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "source"), [("StreamRNN, PyTorch", "torch"), ("Keras, RT", "keras"), ("ONNX", "onnx")]
)
def test_the_table_of_gates_is_the_one_in_use(row, source):
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {row}") and "i, " in line)
    lstm, gru = (cell.strip().split(", ") for cell in line.split("|")[2:4])
    names = {"c": "g", "h": "n"}
    assert tuple(names.get(gate, gate) for gate in lstm) == SOURCE_GATES[source]["lstm"]
    assert tuple(names.get(gate, gate) for gate in gru) == SOURCE_GATES[source]["gru"]
