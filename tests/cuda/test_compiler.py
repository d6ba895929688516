"""Whether there is a GPU that can be used, and what is said if not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'streamrnn[cuda]'")

from streamrnn import Engine
from streamrnn.errors import DeviceError
from streamrnn.kernels.cuda import compiler as support
from tests.support.models import random_model

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not support.SIMULATED, reason="runs in the simulator")


def test_an_old_gpu_is_named(monkeypatch):
    from types import SimpleNamespace

    from numba import cuda

    gpu = SimpleNamespace(compute_capability=(6, 1), name=b"GeForce GTX 1080")
    monkeypatch.setattr(support, "SIMULATED", False)
    monkeypatch.setattr(cuda, "get_current_device", lambda: gpu)
    with pytest.raises(DeviceError, match=r"GeForce GTX 1080 has compute capability 6\.1.* 8\.0"):
        support.require_gpu()


def test_without_numba_cuda_the_extra_is_named(rng, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"pip install 'streamrnn\[cuda\]'"):
        Engine(random_model(rng), device="cuda")


def test_without_a_driver_its_words_are_passed_on(monkeypatch):
    from numba import cuda

    monkeypatch.setattr(cuda, "is_available", lambda: False)
    monkeypatch.setattr(cuda, "cuda_error", lambda: "\nCUDA driver library\ncannot be found.\n:")
    with pytest.raises(DeviceError, match=r"used: CUDA driver library cannot be found; check what"):
        support.require_gpu()


def test_only_one_package_imports_numba_cuda():
    root = Path(support.__file__).parents[3]
    package = Path(support.__file__).parent
    paths = [*root.glob("streamrnn/**/*.py"), *root.glob("server/**/*.py")]
    outside = [path for path in paths if package not in path.parents]
    assert len(outside) > 10
    importing = re.compile(r"^\s*(from numba import .*\bcuda\b|(from|import) numba\.cuda)", re.M)
    assert importing.search((package / "tiles.py").read_text())
    assert not [path for path in outside if importing.search(path.read_text())]


def test_a_numpy_that_numba_cuda_does_not_work_with_is_named():
    """Numpy 2.5 has no row_stack; numba-cuda 0.30 asks for it when it compiles its first kernel."""
    code = (
        "import numpy as np; del np.row_stack; np.__version__ = '2.5.0'; "
        "from streamrnn.kernels.cuda.compiler import require_gpu; require_gpu()"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert re.search(
        r"DeviceError: device 'cuda' cannot be used: numba-cuda [\d.]+ does not work with numpy "
        r"2\.5\.0 \(.*row_stack.*\); pip install 'streamrnn\[cuda\]' brings versions that fit",
        done.stderr,
    ), done.stderr


def test_what_brings_numba_cuda_bounds_numpy():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    bringing = {name for name, needs in extras.items() if any("numba-cuda" in n for n in needs)}
    assert bringing == {"cuda", "test"}
    for name in bringing:
        assert any(re.match(r"numpy<2\.5", need) for need in extras[name]), name
