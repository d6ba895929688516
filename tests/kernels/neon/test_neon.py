"""The kernels compiled for 64-bit ARM (NEON) and run in an emulator.

Needs ``qemu-aarch64`` and ``aarch64-linux-gnu-gcc`` (Debian: qemu-user, gcc-aarch64-linux-gnu).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streamrnn import Engine
from streamrnn.kernels.precisions import PRECISIONS
from tests.kernels.neon.cases import CASES, NUM_STEPS, NUM_STREAMS, model_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A directory with the images and the program that runs one."""
    for program in (COMPILER, EMULATOR):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    directory = tmp_path_factory.mktemp("neon")
    command = [sys.executable, "-m", "tests.kernels.neon.program", str(directory)]
    places = [ROOT, ROOT / "server", ROOT / "clients"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    objects = sorted(map(str, directory.glob("*.o")))
    source = str(ROOT / "tests" / "kernels" / "neon" / "harness.c")
    harness = ["-o", str(directory / "harness"), source, *objects, "-lm"]
    subprocess.run([COMPILER, "-O1", "-static", *harness], check=True)
    return directory


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_arm_gives_the_same_bits(built, tmp_path, case, precision):
    """As this machine's kernels, batch by batch and as a chunk."""
    model, x = model_of(case)
    engine = Engine(model, precision=precision)
    rows = engine.rows(range(NUM_STREAMS))
    expected = np.stack([engine.batch(rows, x[:, t]) for t in range(NUM_STEPS)], axis=1)
    result = tmp_path / "result"
    image = built / f"{case}-{precision}.image"
    subprocess.run([EMULATOR, built / "harness", image, result], check=True, timeout=60)
    shape = (NUM_STREAMS + 1, *expected.shape[1:])
    y = np.frombuffer(result.read_bytes(), np.float32, np.prod(shape)).reshape(shape)
    assert np.array_equal(y[:-1].view(np.int32), expected.view(np.int32))
    assert np.array_equal(y[-1].view(np.int32), expected[0].view(np.int32))
