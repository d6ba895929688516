"""The CUDA simulator with barriers: four times as fast, and blocks can wait for each other.

By itself it polls its threads to see which of them wait, and runs one block at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from streamrnn.kernels.cuda import ptx


def _as_a_gpu() -> np.errstate:
    """Let arithmetic pass in silence: lanes without a row compute with whatever memory holds."""
    return np.errstate(all="ignore")


def run_block(manager: Any, grid_point: Any, *args: Any) -> None:
    """Run one block: what `BlockManager.run` of the simulator does, with a barrier."""
    from numba.cuda.simulator.kernel import BlockThread

    indices = list(np.ndindex(*manager._block_dim))
    meet = threading.Barrier(len(indices))

    def run() -> None:
        try:
            with _as_a_gpu():
                manager._f(*args)
        except BaseException:
            meet.abort()
            raise

    threads = [BlockThread(run, manager, grid_point, index, False) for index in indices]
    for thread in threads:
        thread.syncthreads = meet.wait
        thread.start()
    for thread in threads:
        thread.join()
    _raise_first([thread.exception[0] for thread in threads if thread.exception])


def run_together(
    kernel: Any, num_blocks: int, num_threads: int, shared_bytes: int, args: Sequence[Any]
) -> None:
    """Run a kernel with every thread of every block alive, and raise what one of them raises."""
    from numba.cuda.simulator import kernelapi
    from numba.cuda.simulator.kernel import _push_kernel_context

    ptx.has_failed.clear()
    block_meets = [threading.Barrier(num_threads) for _ in range(num_blocks)]
    shared = [kernelapi.FakeCUDAShared(shared_bytes) for _ in range(num_blocks)]
    errors: list[BaseException] = []

    class Grid(kernelapi.FakeCUDAModule):
        @property
        def shared(self) -> Any:
            return shared[self.blockIdx.x]

        def syncthreads(self) -> None:
            block_meets[self.blockIdx.x].wait()

    class Thread(threading.Thread):
        def __init__(self, block: int, thread: int) -> None:
            super().__init__(daemon=True)
            self.blockIdx = kernelapi.Dim3(block, 0, 0)
            self.threadIdx = kernelapi.Dim3(thread, 0, 0)

        def run(self) -> None:
            try:
                function: Callable[..., None] = kernel.py_func
                with _as_a_gpu():
                    function(*args)
            except BaseException as error:
                errors.append(error)
                ptx.has_failed.set()
                for barrier in block_meets:
                    barrier.abort()

    module = Grid((num_blocks, 1, 1), (num_threads, 1, 1), shared_bytes)
    threads = [Thread(b, t) for b in range(num_blocks) for t in range(num_threads)]
    with _push_kernel_context(module), kernelapi.swapped_cuda_module(kernel.py_func, module):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    _raise_first(errors)


def _raise_first(errors: list[BaseException]) -> None:
    """Raise what broke first, not the barriers that broke with it."""
    for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
