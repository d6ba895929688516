"""Transfer of a batch: pinned buffers, their mirrors on the GPU, and the launches on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, float32, int32, int64
from numpy.typing import NDArray

from streamrnn.kernels.cuda.compiler import SIMULATED, num_multiprocessors
from streamrnn.kernels.cuda.launches import (
    Launch,
    Limits,
    Number,
    first_input,
    launches_of_batch,
    take_halves,
)
from streamrnn.kernels.cuda.network import Batch, Network, Slab
from streamrnn.kernels.cuda.table import (
    DRIVER_FUNCTIONS,
    begin_batch,
    compute_batch,
    end_batch,
    pack_launches,
)

__all__ = ["Transfer", "signature_of"]

_DRIVER_VERSION = 12_000  # whose form of the driver's functions is called


class Transfer:
    """Buffers of a batch, and the way through them. For one batch at a time.

    Parameters
    ----------
    network : Network
        What is stepped.
    slab : Slab
        The streams' rows.
    x_size, y_size : int
        Numbers that the buffers hold: slots and inputs, and outputs.
    compute : cuda stream
        Where all transfers of an engine compute.

    Attributes
    ----------
    batch : Batch
        The buffers on the GPU.
    x : ndarray of float32, shape (x_size,)
        Pinned: a batch's slots (int32), and its inputs [num_rows, num_steps, num_inputs], which
        begin at `first_input`. `begin` makes codes of the slots.
    y : ndarray of float32, shape (y_size,)
        Pinned: its outputs [num_rows, num_steps, num_outputs], after `end`.
    """

    def __init__(
        self, network: Network, slab: Slab, x_size: int, y_size: int, compute: Any
    ) -> None:
        self.x: NDArray[np.float32] = cuda.pinned_array(x_size, np.float32)
        self.y: NDArray[np.float32] = cuda.pinned_array(y_size, np.float32)
        x = cuda.device_array(x_size, np.float32)
        self.batch = Batch(x.view(np.int32), x, cuda.device_array(y_size, np.float32))
        self._launches = network.launches(slab, self.batch)
        self._halves = slab.halves
        # Whatever the driver knows by number must live as long as the transfer.
        self._kept: list[Any] = [network, slab, compute]
        self._table = 0 if SIMULATED else self._pack(compute)

    def begin(self, num_rows: int, num_steps: int, overlaps: bool) -> None:
        """Start the batch whose slots and inputs are in ``x``.

        ``overlaps``: another transfer's batch may be under way meanwhile.
        """
        if SIMULATED:
            self._simulate(num_rows, num_steps)
        else:
            _check(begin_batch(self._table, num_rows, num_steps, int(overlaps)))

    def end(self) -> None:
        """Wait for the batch; its outputs are in ``y`` then."""
        if not SIMULATED:
            _check(end_batch(self._table))

    def compute(self, num_rows: int, num_steps: int, first_step: int = 0) -> None:
        """Start the launches of a batch whose codes and inputs are on the GPU.

        ``first_step``: steps of these rows since the codes were made.
        """
        if not SIMULATED:
            _check(compute_batch(self._table, num_rows, num_steps, first_step))
            return
        batch = (self._launches, num_rows, num_steps, first_step)
        for launch, grid, arguments in launches_of_batch(*batch):
            launch.kernel[grid, launch.threads, 0, launch.shared_bytes](*arguments)

    def _simulate(self, num_rows: int, num_steps: int) -> None:
        """Do what `begin_batch` does, in Python."""
        take_halves(self.x.ctypes.data, self._halves.ctypes.data, num_rows, num_steps)
        size = first_input(num_rows) + num_rows * num_steps * self._launches.num_inputs
        self.batch.x[:size].copy_to_device(self.x[:size])
        self.compute(num_rows, num_steps)
        size = num_rows * num_steps * self._launches.num_outputs
        self.y[:size] = self.batch.y[:size].copy_to_host()

    def _pack(self, compute: Any) -> int:
        from cuda.bindings import driver

        copies = cuda.stream()
        events = {name: cuda.event(timing=False) for name in ("sent", "computed", "received")}
        head: dict[str, int] = {}
        for name in DRIVER_FUNCTIONS:
            error, address, _ = driver.cuGetProcAddress(name.encode(), _DRIVER_VERSION, 0)
            _check(int(error))
            head[name] = int(address)
        error, context = driver.cuCtxGetCurrent()
        _check(int(error))
        head |= {"context": int(context), "compute": int(compute), "copies": int(copies)}
        head |= {name: int(event.handle) for name, event in events.items()}
        for name, host, device in (("x", self.x, self.batch.x), ("y", self.y, self.batch.y)):
            error, mapped = driver.cuMemHostGetDevicePointer(host.ctypes.data, 0)
            _check(int(error))
            head |= {f"host_{name}": host.ctypes.data, f"mapped_{name}": int(mapped)}
            head[f"device_{name}"] = _pointer(device)
        head["halves"] = self._halves.ctypes.data
        table, kept = pack_launches(self._launches, _function, self._pointer, head, _limits)
        self._kept += [copies, events, table, kept]
        return int(table.ctypes.data)

    def _pointer(self, array: Any) -> int:
        """Return an array's address, or that it is one that differs from batch to batch."""
        if array is self.batch.x or array is self.batch.slots:
            return Number.X_ADDRESS
        return Number.Y_ADDRESS if array is self.batch.y else _pointer(array)


def signature_of(launch: Launch) -> tuple[Any, ...]:
    """Return the numba types of a kernel's arguments."""
    arrays = {np.dtype(np.int64): int64, np.dtype(np.float32): float32, np.dtype(np.int32): int32}
    return tuple(int64 if isinstance(a, int) else arrays[a.dtype][::1] for a in launch.arguments)


def _pointer(array: Any) -> int:
    return int(array.__cuda_array_interface__["data"][0])


def _function(launch: Launch) -> int:
    """Compile a kernel, and return the driver's handle of it."""
    return int(launch.kernel.compile(signature_of(launch)).library.get_cufunc().handle)


def _limits(launch: Launch) -> Limits:
    """Return what the GPU takes of a kernel, and let it have all of the shared memory.

    Models share the kernel, so what it may have must not be what one of them needs.
    """
    from cuda.bindings import driver

    gpu, function = cuda.get_current_device(), driver.CUkernel(_function(launch))
    attributes = driver.CUfunction_attribute

    def attribute(which: Any) -> int:
        error, value = driver.cuKernelGetAttribute(which, function, gpu.id)
        _check(int(error))
        return int(value)

    static_bytes = attribute(attributes.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
    shared_bytes = int(gpu.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN) - static_bytes
    num_blocks = 0
    if launch.shared_bytes:
        which = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        [error] = driver.cuKernelSetAttribute(which, shared_bytes, function, gpu.id)
        _check(int(error))
    if launch.is_cooperative:
        error, num_blocks = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(
            driver.CUfunction(int(function)), launch.threads, launch.shared_bytes
        )
        _check(int(error))
    return Limits(
        attribute(attributes.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK),
        shared_bytes,
        num_blocks * num_multiprocessors(),
    )


def _check(error: int) -> None:
    """Raise what numba raises for an error of the driver."""
    if error == 0:
        return
    from cuda.bindings import driver
    from numba.cuda.cudadrv.driver import CudaAPIError

    _, name = driver.cuGetErrorName(driver.CUresult(error))
    raise CudaAPIError(error, name.decode() if name else "unknown error")
