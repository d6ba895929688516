"""For benchmarks: what a GPU can do at most, and steps whose inputs are there already."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, float32
from numpy.typing import NDArray

from streamrnn.kernels.cuda import network
from streamrnn.kernels.cuda.compiler import SIMULATED, kernel
from streamrnn.kernels.cuda.transfer import Transfer
from streamrnn.model.model import Model

__all__ = ["FmaRate", "ResidentStreams", "copy_runner"]

_NUM_SUMS = 16  # of a thread, independent of each other
_NUM_ITERATIONS = 4 if SIMULATED else 4096
_NUM_THREADS = 4 if SIMULATED else 256
_BLOCKS_A_MULTIPROCESSOR = 1 if SIMULATED else 8


@kernel(_NUM_THREADS)
def _multiply_and_add(factor, out):
    sums = cuda.local.array(_NUM_SUMS, float32)
    for i in range(_NUM_SUMS):
        sums[i] = factor
    for _ in range(_NUM_ITERATIONS):
        for i in range(_NUM_SUMS):
            sums[i] = cuda.fma(sums[i], factor, factor)
    total = factor
    for i in range(_NUM_SUMS):
        total += sums[i]
    out[cuda.grid(1)] = total


class FmaRate:
    """A kernel that only multiplies and adds, in float32 and in registers.

    Attributes
    ----------
    flops : int
        Floating-point operations of one run.
    """

    def __init__(self) -> None:
        gpu = cuda.get_current_device()
        num_multiprocessors = 1 if SIMULATED else gpu.MULTIPROCESSOR_COUNT
        self._num_blocks = _BLOCKS_A_MULTIPROCESSOR * num_multiprocessors
        num_threads = self._num_blocks * _NUM_THREADS
        self._out = cuda.device_array(num_threads, np.float32)
        self.flops = 2 * num_threads * _NUM_SUMS * _NUM_ITERATIONS

    def run(self, num_repeats: int) -> None:
        """Run the kernel so many times, and wait for it."""
        for _ in range(num_repeats):
            _multiply_and_add[self._num_blocks, _NUM_THREADS](np.float32(0.5), self._out)
        cuda.synchronize()


def copy_runner(num_bytes: int) -> Any:
    """Return a function that copies memory of the GPU to itself so many times, and waits."""
    source = cuda.to_device(np.zeros(num_bytes, dtype=np.uint8))
    target = cuda.device_array(num_bytes, np.uint8)

    def run(num_repeats: int) -> None:
        for _ in range(num_repeats):
            target.copy_to_device(source)
        cuda.synchronize()

    return run


class ResidentStreams:
    """B streams in one batch, whose inputs, states and outputs are all on the GPU.

    Parameters
    ----------
    model : Model
        What they run through.
    x : ndarray of float32, shape (B, T, num_inputs)
        Their inputs of every run.
    precision : str
        Of the products.
    """

    def __init__(self, model: Model, x: NDArray[np.float32], precision: str = "float32") -> None:
        self._shape = x.shape
        self._output_size = model.spec.output_size
        num_streams, num_steps, _ = x.shape
        streams = network.Network(model, num_streams, precision)
        slots = np.arange(num_streams, dtype=np.int32)
        slab = cuda.device_array(num_streams * streams.plan.row_size, np.float32)
        streams.start_rows(slab, slots)
        self._stream = cuda.stream()
        y_size = num_streams * num_steps * self._output_size
        self._transfer = Transfer(streams, slab, num_streams + x.size, y_size, self._stream)
        self._transfer.batch.x.copy_to_device(
            np.concatenate([slots.view(np.float32), x.reshape(-1)])
        )
        cuda.synchronize()

    def run(self, num_repeats: int) -> None:
        """Advance every stream by T steps so many times, with the same inputs, and wait."""
        num_streams, num_steps, _ = self._shape
        for _ in range(num_repeats):
            self._transfer.compute(num_streams, num_steps)
        self._stream.synchronize()

    def outputs(self) -> NDArray[np.float32]:
        """Return what the last run computed, float32 [B, T, output_size]."""
        y: NDArray[np.float32] = self._transfer.batch.y.copy_to_host()
        return y.reshape(*self._shape[:2], self._output_size)
