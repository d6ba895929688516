"""The simulator that the kernels' tests run in: faults of a kernel must show."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'streamrnn[cuda]'")

from numba import cuda

from streamrnn.kernels.cuda import compiler as support
from tests.cuda.grid import launch

pytestmark = pytest.mark.skipif(not support.SIMULATED, reason="runs in the simulator")

NUM_THREADS = 8


@pytest.fixture(autouse=True)
def turns(monkeypatch):
    monkeypatch.setattr("numba.cuda.simulator.kernel.FakeCUDAKernel.__call__", launch)


def neighbours(has_barrier):
    """Return a kernel in which each thread writes a number, and reads those beside it."""

    @support.kernel(NUM_THREADS)
    def kernel(out):
        shared = cuda.shared.array(NUM_THREADS, np.int32)
        for i in range(3):
            me = cuda.threadIdx.x
            shared[me] = 10 * i + me
            if has_barrier:
                cuda.syncthreads()
            left, right = (me - 1) % NUM_THREADS, (me + 1) % NUM_THREADS
            out[i, me, 0], out[i, me, 1] = shared[left], shared[right]
            cuda.syncthreads()

    return kernel


def test_a_barrier_that_is_missing_shows_in_both_directions():
    right, wrong = (cuda.to_device(np.full((3, NUM_THREADS, 2), -1, np.int32)) for _ in range(2))
    neighbours(True)[1, NUM_THREADS](right)
    neighbours(False)[1, NUM_THREADS](wrong)
    sides = np.stack([np.roll(np.arange(NUM_THREADS), 1), np.roll(np.arange(NUM_THREADS), -1)], 1)
    np.testing.assert_array_equal(right.copy_to_host(), sides + 10 * np.arange(3).reshape(-1, 1, 1))
    differs = (wrong.copy_to_host() != right.copy_to_host())[1:, 1:-1]
    assert differs[:, :, 0].any()
    assert differs[:, :, 1].any()


def test_a_word_that_nobody_writes_is_an_error():
    @support.kernel(NUM_THREADS)
    def kernel(out):
        if cuda.threadIdx.x == 0:
            while out[0] == 0:
                cuda.nanosleep(1)
        cuda.syncthreads()

    with pytest.raises(RuntimeError, match="threads wait for what nobody writes"):
        kernel[1, NUM_THREADS](cuda.to_device(np.zeros(1, np.int32)))


def test_a_block_may_wait_for_one_that_comes_later():
    @support.kernel(NUM_THREADS)
    def kernel(out):
        block = cuda.blockIdx.x
        if block < 2:
            while out[block + 1] == 0:
                cuda.nanosleep(1)
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            out[block] = 3 - block

    out = cuda.to_device(np.zeros(3, np.int32))
    kernel[3, NUM_THREADS](out)
    assert out.copy_to_host().tolist() == [3, 2, 1]


def test_what_a_thread_raises_ends_all_and_the_next_launch_runs():
    @support.kernel(NUM_THREADS)
    def kernel(out):
        if cuda.threadIdx.x == 5:
            out[cuda.threadIdx.x] = 1
        cuda.syncthreads()

    with pytest.raises(IndexError, match="out of bounds"):
        kernel[2, NUM_THREADS](cuda.to_device(np.zeros(5, np.int32)))
    out = cuda.to_device(np.zeros(6, np.int32))
    kernel[2, NUM_THREADS](out)
    assert out.copy_to_host().tolist() == [0, 0, 0, 0, 0, 1]
