"""A driver of CUDA without a GPU, for processes of their own: the whole host path runs on it.

In the tests' own process numba's simulator takes the driver's place.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

__all__ = ["environment_of", "make_driver", "run_checks"]

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


def environment_of(driver: Path, capability: tuple[int, int] = (9, 0)) -> dict[str, str]:
    """Return the environment of a process whose GPU is the fake one."""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    paths = [str(driver), environment.get("LD_LIBRARY_PATH", "")]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(path for path in paths if path)
    environment["FAKE_CAPABILITY"] = "{}{}".format(*capability)
    return environment


def run_checks(driver: Path, names: Iterable[str]) -> dict[str, str]:
    """Run checks of `tests.cuda.host_path` in a process of their own; return what went wrong.

    Warnings are errors there: numba's own must not reach a user.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.cuda.host_path", *names],
        cwd=Path(__file__).parents[3],
        env=environment_of(driver),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    return {name: error and error + done.stderr for name, error in results.items()}
