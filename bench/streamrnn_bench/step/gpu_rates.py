"""For benchmarks: what a GPU can do at most, and steps whose inputs are there already."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np
from numba import cuda, float32
from numpy.typing import NDArray

from streamrnn.kernels.cuda import network
from streamrnn.kernels.cuda.compiler import SIMULATED, kernel
from streamrnn.kernels.cuda.launches import first_input
from streamrnn.kernels.cuda.plan import GpuPlan
from streamrnn.kernels.cuda.transfer import Transfer
from streamrnn.model.model import Model

__all__ = ["CopyRate", "FmaRate", "ResidentStreams"]

_NUM_SUMS = 16  # of a thread, independent of each other
_NUM_FACTORS = 8  # and as many addends
_UNROLLED = 16  # times that each sum is multiplied before the loop goes back
_NUM_ITERATIONS = 1 if SIMULATED else 256
_NUM_THREADS = 4 if SIMULATED else 256
_BLOCKS_A_MULTIPROCESSOR = 1 if SIMULATED else 8


@kernel(_NUM_THREADS)
def _multiply_and_add(numbers, num_iterations, out):
    """Multiply and add; ``numbers`` are float32[num_threads + _NUM_SUMS], from -1 to 1.

    Every instruction has operands of its own that no compiler knows, and every sum goes on changing
    in all of its bits: what does not change takes less power, and so gets a higher clock.
    """
    sums = cuda.local.array(_NUM_SUMS, float32)
    factors = cuda.local.array(_NUM_FACTORS, float32)
    addends = cuda.local.array(_NUM_FACTORS, float32)
    thread = cuda.grid(1)
    for i in range(_NUM_SUMS):
        sums[i] = numbers[thread + i]
    for i in range(_NUM_FACTORS):
        factors[i] = numbers[thread + i]
        addends[i] = numbers[thread + _NUM_FACTORS + i]
    left = np.int32(num_iterations)
    while left > 0:
        for j in range(_UNROLLED):
            for i in range(_NUM_SUMS):
                # The one of the instruction before is read once: registers lie in two banks, each
                # of which gives one a cycle, and so three new ones an instruction are 2/3 of all.
                k = j & (_NUM_FACTORS - 1)
                sums[i] = cuda.fma(sums[i], factors[k], addends[k])
        left -= np.int32(1)
    total = float32(0)
    for i in range(_NUM_SUMS):
        total += sums[i]
    out[thread] = total


class FmaRate:
    """A kernel that only multiplies and adds, in float32 and in registers, random numbers.

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
        numbers = _random().uniform(-1, 1, num_threads + _NUM_SUMS).astype(np.float32)
        self.numbers = cuda.to_device(numbers)
        self._out = cuda.device_array(num_threads, np.float32)
        self.flops = 2 * num_threads * _NUM_SUMS * _UNROLLED * _NUM_ITERATIONS

    def run(self, num_repeats: int) -> None:
        """Run the kernel so many times, and wait for it."""
        for _ in range(num_repeats):
            _multiply_and_add[self._num_blocks, _NUM_THREADS](
                self.numbers, _NUM_ITERATIONS, self._out
            )
        cuda.synchronize()


def _random() -> np.random.Generator:
    return np.random.default_rng(12)


class CopyRate:
    """Copies of the GPU's memory to itself, of random numbers."""

    def __init__(self, num_bytes: int) -> None:
        self.source = cuda.to_device(np.frombuffer(_random().bytes(num_bytes), np.uint8))
        self.target = cuda.device_array(num_bytes, np.uint8)

    def run(self, num_repeats: int) -> None:
        """Copy so many times, and wait."""
        for _ in range(num_repeats):
            self.target.copy_to_device(self.source)
        cuda.synchronize()


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
        streams = network.Network(GpuPlan(model, precision), num_streams)
        slots = np.arange(num_streams, dtype=np.int32)
        slab = streams.make_slab(num_streams)
        streams.start_rows(slab, slots)
        self._stream = cuda.stream()
        y_size = num_streams * num_steps * self._output_size
        inputs = np.zeros(first_input(num_streams) + x.size, np.float32)
        inputs[:num_streams].view(np.int32)[:] = slots << 1  # codes
        inputs[first_input(num_streams) :] = x.reshape(-1)
        self._transfer = Transfer(streams, slab, inputs.size, y_size, self._stream)
        self._transfer.batch.x.copy_to_device(inputs)
        self._num_steps_run = 0
        cuda.synchronize()

    def run(self, num_repeats: int) -> None:
        """Advance every stream by T steps so many times, with the same inputs, and wait."""
        num_streams, num_steps, _ = self._shape
        for _ in range(num_repeats):
            self._transfer.compute(num_streams, num_steps, self._num_steps_run)
            self._num_steps_run += num_steps
        self._stream.synchronize()

    def outputs(self) -> NDArray[np.float32]:
        """Return what the last run computed, float32 [B, T, output_size]."""
        y: NDArray[np.float32] = self._transfer.batch.y.copy_to_host()
        return y.reshape(*self._shape[:2], self._output_size)
