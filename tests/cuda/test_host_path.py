"""The host path of the CUDA device on a fake driver, which refuses what a real one would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'streamrnn[cuda]'")

from tests.cuda.fake import environment_of, make_driver
from tests.cuda.host_path import CHECKS

ROOT = Path(__file__).parents[2]

# Some twenty kernels are compiled.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every check, run once with warnings as errors: numba's own must not reach a user."""
    environment = environment_of(make_driver(tmp_path_factory.mktemp("driver")))
    command = [sys.executable, "-W", "error", "-m", "tests.cuda.host_path"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("name", CHECKS)
def test_on_the_fake_driver(results, name):
    assert not results[0][name], results[0][name] + results[1]
