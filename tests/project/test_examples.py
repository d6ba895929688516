"""The files of examples/ run as a user would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streamrnn_client.text import cut
from streamrnn_server.testing import serving
from tests.support.models import random_model, text_model
from tests.support.tables import book

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MAX_LINES = 40


def run(example: Path, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(example), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def model():
    return random_model(np.random.default_rng(1), inputs=1, outputs=1)


@pytest.fixture(scope="module")
def address(model):
    with serving({"co2": model}) as server:
        yield server.endpoints[0]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("one_stream", "back again after step 3"),
        ("many_streams", "sensor-new: "),
        ("asyncio_client", "ship: read 366.4, next "),
    ],
)
def test_example_of_the_client_runs(address, name, line):
    assert line in run(ROOT / "examples" / f"{name}.py", address)


def test_example_of_text_runs():
    pieces, _ = cut(book(), "char")
    with serving({"book": text_model("char", pieces)}) as server:
        out = run(ROOT / "examples" / "sample_text.py", server.endpoints[0])
    assert len(out.rpartition("\nthen ")[0]) == 60
    assert "%" in out.rpartition("\nthen ")[2]


def test_example_of_the_engine_runs(model, tmp_path):
    model.save(tmp_path / "co2.safetensors")
    out = run(ROOT / "examples" / "engine_in_process.py", tmp_path / "co2.safetensors")
    assert "bytes; equal: True" in out


def test_example_of_training_runs(tmp_path):
    out = run(ROOT / "examples" / "train_from_csv.py", tmp_path)
    assert "persistence" in out
    assert "press, the next minute: " in out


def test_example_of_importing_runs(tmp_path):
    pytest.importorskip("torch", exc_type=ImportError)
    run(ROOT / "examples" / "from_pytorch.py", tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_every_example_is_run_and_short():
    source = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES:
        assert path.stem in source, f"{path.name} is not run"
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, path.name
    assert EXAMPLES
