"""The compiler's decorators, and whether there is a GPU that can be used.

Importing this module imports no numba-cuda: `require_gpu` says first what is missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config

from streamrnn.errors import DeviceError

__all__ = [
    "MIN_COMPUTE_CAPABILITY",
    "OPTIONS",
    "SIMULATED",
    "arithmetic",
    "chained",
    "device_function",
    "gpu_errors",
    "gpu_name",
    "kernel",
    "max_shared_bytes",
    "num_multiprocessors",
    "require_gpu",
    "unrolled",
]

# What every kernel is compiled and checked for. Older ones may work; nobody has looked.
MIN_COMPUTE_CAPABILITY = (8, 0)

# NUMBA_ENABLE_CUDASIM=1: kernels run as Python, one Python thread for each of the GPU's.
SIMULATED = bool(config.ENABLE_CUDASIM)

# What bits and registers depend on is stated, for numba takes its defaults from the environment
# (NUMBA_OPT, NUMBA_CUDA_DEBUGINFO) and from what is installed (lto). Without fastmath NVVM has its
# defaults: ftz=0, prec-div=1, prec-sqrt=1. Without lto the PTX, which says so in every
# instruction, is what the assembler gets: the tests read it, and the machine code.
OPTIONS = {"fastmath": False, "lto": False, "opt": True, "debug": False, "lineinfo": False}

_STATIC_SHARED_BYTES = 1 << 10  # left to what a kernel, or the system, declares of its own
_SIMULATED_SHARED_BYTES = 47 << 10


def require_gpu() -> Any:
    """Return numba's module ``cuda`` if there is a GPU that these kernels run on.

    Raises
    ------
    DeviceError
        If numba-cuda, the driver or a GPU is missing, numba-cuda does not work with the numpy that
        is installed, or the GPU is too old.
    """
    cuda = _import_numba_cuda()
    if not cuda.is_available():
        reason = str(cuda.cuda_error() or "the driver found no GPU").strip(" :.\n")
        raise DeviceError(
            f"device 'cuda' cannot be used: {' '.join(reason.split())}; check what nvidia-smi "
            "says, or use device 'cpu'"
        )
    gpu = cuda.get_current_device()
    if not SIMULATED and gpu.compute_capability < MIN_COMPUTE_CAPABILITY:
        has, needed = (
            "{}.{}".format(*capability)
            for capability in (gpu.compute_capability, MIN_COMPUTE_CAPABILITY)
        )
        name = gpu.name.decode() if isinstance(gpu.name, bytes) else gpu.name
        raise DeviceError(
            f"the GPU {name} has compute capability {has}; device 'cuda' needs {needed} or "
            "newer (Ampere, 2020); use device 'cpu'"
        )
    return cuda


def _import_numba_cuda() -> Any:
    if importlib.util.find_spec("numba_cuda") is None:
        raise DeviceError(
            "device 'cuda' needs numba-cuda, which is not installed: "
            "pip install 'streamrnn[cuda]', or use device 'cpu'"
        )
    try:
        from numba import cuda

        if not SIMULATED:
            # Imported when the first kernel is compiled, and the first to miss what a new numpy
            # has dropped (numba-cuda 0.30 and np.row_stack, which numpy 2.5 has no more).
            importlib.import_module("numba.cuda.np.arrayobj")
    except (AttributeError, ImportError) as error:
        raise DeviceError(
            f"device 'cuda' cannot be used: numba-cuda {importlib.metadata.version('numba-cuda')} "
            f"does not work with numpy {np.__version__} ({error}); pip install 'streamrnn[cuda]' "
            "brings versions that fit, or use device 'cpu'"
        ) from error
    return cuda


def gpu_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of a failing GPU: of numba-cuda, and of what it launches with."""
    from numba.cuda.cudadrv.driver import CudaAPIError

    try:
        from cuda.core._utils.cuda_utils import CUDAError
    except ImportError:  # not public, and so free to move
        return (CudaAPIError,)
    return (CudaAPIError, CUDAError)


def arithmetic(precision: str) -> str:
    """Return what decides the bits of an output besides model and inputs.

    Its number is to be raised whenever any output's bits change. Float32 is the same on every GPU;
    how a tensor core adds differs from one architecture to the next. The simulator rounds each
    product before it is added.
    """
    place = ""
    if SIMULATED:
        place = "-simulator"
    elif precision in ("tf32", "bfloat16"):
        from numba import cuda

        place = "-sm{}{}".format(*cuda.get_current_device().compute_capability)
    return f"cuda{place}-{precision}-2"


def num_multiprocessors() -> int:
    """Return the GPU's multiprocessors; the simulator runs one block at a time."""
    from numba import cuda

    return 1 if SIMULATED else int(cuda.get_current_device().MULTIPROCESSOR_COUNT)


def gpu_name() -> str:
    """Return NVIDIA's name of the GPU; raise `DeviceError` if there is none to use."""
    gpu = require_gpu().get_current_device()
    if SIMULATED:
        return "simulator"
    return gpu.name.decode() if isinstance(gpu.name, bytes) else str(gpu.name)


def max_shared_bytes() -> int:
    """Return the most dynamic shared memory that a block may be planned with."""
    from numba import cuda

    if SIMULATED:
        return _SIMULATED_SHARED_BYTES
    gpu = cuda.get_current_device()
    return int(gpu.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN) - _STATIC_SHARED_BYTES


def kernel(max_threads: int, min_blocks: int = 1) -> Callable[[Callable[..., Any]], Any]:
    """Return the decorator of a kernel. Never fast-math: the bits of an output are a promise.

    Parameters
    ----------
    max_threads : int
        The most threads a block is launched with.
    min_blocks : int
        Blocks that a multiprocessor shall hold at once: bounds the registers of a thread.
    """
    from numba import cuda

    if SIMULATED:
        return cuda.jit
    # Called without the function, numba-cuda 0.30's decorator forgets ``lto``.
    bounds = (max_threads, min_blocks)
    return lambda function: cuda.jit(function, launch_bounds=bounds, **OPTIONS)


def device_function(function: Callable[..., Any]) -> Any:
    """Compile a function that becomes part of each kernel that calls it."""
    from numba import cuda

    if SIMULATED:
        return cuda.jit(function, device=True)
    return cuda.jit(function, device=True, forceinline=True, **OPTIONS)


def unrolled(count: int, body: Any) -> Any:
    """Return a device function that calls ``body(0, ...)`` to ``body(count - 1, ...)``.

    A chain of calls, which the compiler has to take as it is; a loop it unrolls as it likes. The
    body is of the module of the kernel.
    """
    if SIMULATED:
        # By itself the simulator puts its own ``cuda`` into the module at each call: most of the
        # time, and the kernel's call has done it.
        def call_each(*args: Any) -> None:
            for k in range(count):
                body.fn(k, *args)

        return call_each
    last = count - 1
    if last == 0:

        @device_function
        def call_once(*args: Any) -> None:
            body(0, *args)

        return call_once
    call_others = unrolled(last, body)

    @device_function
    def call_all(*args: Any) -> None:
        call_others(*args)
        body(last, *args)

    return call_all


def chained(functions: list[Any]) -> Any:
    """Return a device function that calls all of them, one after the other."""
    if len(functions) == 1:
        return functions[0]
    call_others, last = chained(functions[:-1]), functions[-1]

    @device_function
    def call_all(*args: Any) -> None:
        call_others(*args)
        last(*args)

    return call_all
