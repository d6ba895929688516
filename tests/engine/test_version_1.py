"""Models and states of the version before layers of every kind: nothing of them has changed.

``tests/golden/version_1`` holds, made by that version: weight files of every form, and for each the
fingerprint, inputs [12, I], and for every precision the outputs and a state's record after 6 steps.
"""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.model.model import Model

FOLDER = Path(__file__).parents[1] / "golden" / "version_1"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))


def test_there_are_files():
    assert len(NAMES) == 5


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_fingerprints_bits_and_records_are_those_of_before(name, precision, tmp_path):
    model = Model.load(FOLDER / f"{name}.safetensors")
    with np.load(FOLDER / f"{name}.npz") as before:
        assert model.fingerprint == str(before["fingerprint"])
        x, y = before["x"], before[f"y_{precision}"]
        record = before[f"record_{precision}"].tobytes()
    engine = Engine(model, max_streams=2, precision=precision)
    np.testing.assert_array_equal(engine.steps("s", x[:6]), y[:6])
    if platform.machine() != "x86_64":  # the record names the machine that it is of
        return
    assert engine.export_state("s") == record
    engine.import_state("t", record)
    np.testing.assert_array_equal(engine.steps("t", x[6:]), y[6:])
    model.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (FOLDER / f"{name}.safetensors").read_bytes()
