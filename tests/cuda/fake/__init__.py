"""A driver of CUDA without a GPU, for processes of their own: the whole host path runs on it.

In the tests' own process numba's simulator takes the driver's place.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from streamrnn_bench.child_process import start_child

__all__ = ["compile_and_check", "make_driver"]

_FLAGS = ("-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-pthread")


def make_driver(directory: Path) -> Path:
    """Compile the driver into a directory; skip the test if there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the fake driver of CUDA needs a C compiler (cc)")
    source = Path(__file__).with_name("driver.c")
    library = directory / "libcuda.so.1"
    subprocess.run([compiler, *_FLAGS, "-o", library, source, "-ldl"], check=True)
    return directory


def compile_and_check(driver: Path, *parts: str) -> dict[str, dict[str, Any]]:
    """Run parts of `tests.cuda.compiled` side by side; return their kernels, and what went wrong.

    Warnings are errors there: numba's own must not reach a user.
    """
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    paths = [str(driver), environment.get("LD_LIBRARY_PATH", "")]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(path for path in paths if path)
    environment["FAKE_CAPABILITY"] = "90"
    options: Any = {"env": environment, "cwd": Path(__file__).parents[3], "text": True}
    found: dict[str, dict[str, Any]] = {"kernels": {}, "checks": {}}
    with contextlib.ExitStack() as stack:
        processes = []
        for part in parts:
            command = [sys.executable, "-W", "error", "-m", "tests.cuda.compiled", part]
            errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            process = start_child(command, stdout=subprocess.PIPE, stderr=errors, **options)
            processes.append((stack.enter_context(process), errors))  # waits for its end
            stack.callback(process.kill)
        for process, errors in processes:
            output, _ = process.communicate()
            errors.seek(0)
            said = errors.read()
            assert process.returncode == 0, said
            part = json.loads(output)
            found["kernels"] |= part["kernels"]
            found["checks"] |= {k: error and error + said for k, error in part["checks"].items()}
    return found
