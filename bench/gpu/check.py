"""Whether kernels can be compiled and run here: versions, then blocks that tell each other."""

from __future__ import annotations

import importlib.metadata

import numpy as np

from streamrnn.kernels.cuda.compiler import gpu_name, kernel, require_gpu

PACKAGES = ("numba", "numba-cuda", "llvmlite", "numpy", "cuda-core", "cuda-bindings", "torch")
LIBRARIES = ("nvidia-nvvm", "nvidia-nvjitlink", "nvidia-cuda-runtime")


def main() -> None:
    """Print versions and places, and compile and run one kernel."""
    for name in (*PACKAGES, *LIBRARIES):
        try:
            print(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            print(name, "is not here")
    cuda = require_gpu()
    from cuda.pathfinder import load_nvidia_dynamic_lib

    for library in ("nvvm", "nvJitLink"):
        print(load_nvidia_dynamic_lib(library).abs_path)

    from streamrnn.kernels.cuda.ptx import i32, peek, publish

    @kernel(32)
    def add_up(words, total):  # type: ignore[no-untyped-def]
        block = cuda.blockIdx.x
        if cuda.threadIdx.x == 0:
            publish(words, block, i32(1), np.float32(block + 1))
        if block == 0 and cuda.threadIdx.x == 0:
            for i in range(cuda.gridDim.x):
                tag, value = peek(words, i)
                while tag != 1:
                    tag, value = peek(words, i)
                total[0] += value

    words, total = cuda.to_device(np.zeros(128, np.int64)), cuda.to_device(np.zeros(1, np.float32))
    add_up[128, 32](words, total)
    [found] = total.copy_to_host()
    if found != 128 * 129 // 2:
        raise SystemExit(f"what blocks tell each other added up to {found}, not 8256")
    print(f"{gpu_name()}: kernels are compiled and run; blocks tell each other")


if __name__ == "__main__":
    main()
