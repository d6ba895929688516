"""What every test shares."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import settings

# A test's first example may wait for a compilation, and no test gates on time.
settings.register_profile("streamrnn", deadline=None, print_blob=True)
settings.load_profile("streamrnn")


def pytest_configure(config: pytest.Config) -> None:
    # Numba reads this when it is imported: without a GPU its kernels run in the simulator.
    if config.getoption("markexpr") != "gpu":
        os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20260101)
