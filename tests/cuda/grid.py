"""The CUDA simulator with turns: several times as fast, and blocks can wait for each other.

By itself it runs one block at a time, polls its threads to see which of them wait, and puts its own
``cuda`` into a module at each call of a device function. Here one thread runs until it waits and
then hands its turn on, so that none waits for the interpreter. What follows a barrier begins with
the thread that came last, then with the one that came first: so a barrier that is missing shows,
whichever way data goes. A warp runs on as far as it can while others stand. Blocks begin one after
the other, and the next one early when a thread sleeps, for it may wait for what that one writes.
"""

from __future__ import annotations

import contextlib
import sys
from _thread import allocate_lock, start_new_thread
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba.cuda import types
from numba.cuda.np.numpy_support import as_dtype
from numba.cuda.simulator import kernelapi
from numba.cuda.simulator.kernel import FakeCUDAKernel, _push_kernel_context

__all__ = ["launch"]

_WARP = 32
_PACKAGE = "streamrnn.kernels.cuda."
_MAX_IDLE_TURNS = 1000  # of each thread, one after the other: what they wait for never comes


class _Stopped(BaseException):
    """Ends a thread after another has failed."""


class _Shared:
    """The shared memory of a block: an array for each place in the code that asks for one."""

    def __init__(self, dynamic_bytes: int) -> None:
        self._dynamic = bytearray(dynamic_bytes)
        self._arrays: dict[Any, Any] = {}

    def array(self, shape: Any, dtype: Any) -> Any:
        dtype = as_dtype(dtype) if isinstance(dtype, types.Type) else np.dtype(dtype)
        if shape == 0:
            return np.frombuffer(self._dynamic, dtype, len(self._dynamic) // dtype.itemsize)
        caller = sys._getframe(1)
        place = (caller.f_code, caller.f_lineno)
        if place not in self._arrays:
            self._arrays[place] = np.empty(shape, dtype)
        return self._arrays[place]


class _Group:
    """Threads that wait for each other: those of a block, or of a warp."""

    def __init__(self, num_running: int) -> None:
        self.num_running = num_running
        self.waiting: list[_Thread] = []

    def take_ready(self) -> list[_Thread]:
        """Return the threads at the barrier, if all that run are there, the last to come first."""
        if len(self.waiting) < self.num_running:
            return []
        ready, self.waiting = self.waiting[::-1], []
        return ready


class _Block:
    """A block that has begun."""

    def __init__(self, index: tuple[int, ...], num_threads: int, shared_bytes: int) -> None:
        self.index = kernelapi.Dim3(*index)
        self.shared = _Shared(shared_bytes)
        self.all = _Group(num_threads)
        self.warps = [_Group(min(_WARP, num_threads - k)) for k in range(0, num_threads, _WARP)]


class _Thread:
    """A thread of a block, and the lock that is its turn."""

    def __init__(self, block: _Block, index: int) -> None:
        self.block, self.warp = block, block.warps[index // _WARP]
        self.index = kernelapi.Dim3(index, 0, 0)
        self.turn = allocate_lock()
        self.turn.acquire()


class _Grid(kernelapi.FakeCUDAModule):
    """One launch: what its kernel knows as ``cuda``, and whose turn it is."""

    # Of the thread whose turn it is.
    threadIdx: Any = None
    blockIdx: Any = None
    shared: Any = None

    def __init__(self, kernel: FakeCUDAKernel, args: tuple[Any, ...]) -> None:
        super().__init__(kernel.grid_dim, kernel.block_dim, 0)
        self._function, self._args = kernel.fn, args
        self._shared_bytes = kernel.dynshared_size
        self._later = np.ndindex(*kernel.grid_dim)
        self._blocks: list[_Block] = []
        self._ready: deque[_Thread] = deque()
        self._current: Any = None
        self._num_idle = 0
        self._error: BaseException | None = None
        self._has_ended = allocate_lock()

    def run(self) -> None:
        """Run all blocks; raise what was raised first."""
        self._has_ended.acquire()
        self._hand_on()
        self._has_ended.acquire()
        if self._error is not None:
            raise self._error

    def syncthreads(self) -> None:
        """Wait for all threads of the block that still run."""
        self._meet(self._current.block.all)

    def syncwarp(self) -> None:
        """Wait for all threads of the warp that still run."""
        self._meet(self._current.warp)

    def _meet(self, group: _Group) -> None:
        self._num_idle = 0
        thread = self._current
        group.waiting.append(thread)
        self._go_on(group)
        self._wait(thread)

    def _go_on(self, group: _Group) -> None:
        """Let a group that is complete run before all others: warps drift apart as they can."""
        self._ready.extendleft(reversed(group.take_ready()))

    def nanosleep(self, ns: float) -> None:
        """Let all others run, and the next block begin."""
        self._num_idle += 1
        if self._num_idle > _MAX_IDLE_TURNS * len(self._blocks) * self.blockDim.x:
            raise RuntimeError("threads wait for what nobody writes")
        self._begin_block()
        thread = self._current
        self._ready.append(thread)
        self._wait(thread)

    def _begin_block(self) -> None:
        index = None if self._error else next(self._later, None)
        if index is None:
            return
        block = _Block(index, self.blockDim.x, self._shared_bytes)
        self._blocks.append(block)
        for k in range(self.blockDim.x):
            thread = _Thread(block, k)
            self._ready.append(thread)
            start_new_thread(self._run_thread, (thread,))

    def _hand_on(self) -> None:
        """Give the turn to the next thread; without any the launch has ended."""
        if not self._ready:
            self._begin_block()
        if self._ready:
            self._ready.popleft().turn.release()
        else:
            self._has_ended.release()

    def _wait(self, thread: _Thread) -> None:
        """Hand the turn on, and wait for the next."""
        self._hand_on()
        thread.turn.acquire()
        self._take(thread)

    def _take(self, thread: _Thread) -> None:
        if self._error is not None:
            raise _Stopped
        self._current, self.threadIdx = thread, thread.index
        self.blockIdx, self.shared = thread.block.index, thread.block.shared

    def _run_thread(self, thread: _Thread) -> None:
        thread.turn.acquire()
        try:
            self._take(thread)
            # As a GPU does: lanes without a row compute with whatever memory holds.
            with np.errstate(all="ignore"):
                self._function(*self._args)
        except _Stopped:
            pass
        except BaseException as error:
            self._error = error
        for group in (thread.block.all, thread.warp):
            group.num_running -= 1
            if group.num_running:
                self._go_on(group)
        self._hand_on()


def launch(kernel: FakeCUDAKernel, *args: Any) -> Any:
    """Call a device function, or run a kernel: in place of `FakeCUDAKernel.__call__`."""
    if kernel._device:
        return kernel.fn(*args)
    grid = _Grid(kernel, tuple(getattr(arg, "_ary", arg) for arg in args))
    modules = [vars(m) for name, m in sys.modules.items() if name.startswith(_PACKAGE)]
    modules.append(kernel.fn.__globals__)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_push_kernel_context(grid))
        for names in modules:
            module = SimpleNamespace(__globals__=names)  # all that is read of a function
            stack.enter_context(kernelapi.swapped_cuda_module(module, grid))
        grid.run()
    return None
