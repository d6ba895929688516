"""The host path of the CUDA device on a fake driver, which refuses what a real one would."""

from __future__ import annotations

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'streamrnn[cuda]'")

from tests.cuda.fake import make_driver, run_checks
from tests.cuda.host_path import CHECKS

# Some twenty kernels are compiled.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_checks(make_driver(tmp_path_factory.mktemp("driver")), CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_on_the_fake_driver(results, name):
    assert not results[name], results[name]
