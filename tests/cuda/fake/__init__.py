"""A driver of CUDA without a GPU, for processes of their own: the whole host path runs on it.

In the tests' own process numba's simulator takes the driver's place.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["environment_of", "make_driver"]

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
