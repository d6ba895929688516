"""Compile every kernel as it is compiled for a GPU, where there is none.

``python -m tests.cuda.ptx`` prints JSON: for each kernel its LLVM, its PTX, what the assembler says
of that, and the machine code that goes to the driver, which is the fake one: it says for what GPU.
A process of its own: in the tests' process numba's simulator takes the compiler's place.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from typing import Any


def assemble(ptx: str) -> str:
    """Return what the assembler says about registers, memory and spills."""
    from cuda import pathfinder
    from cuda.bindings import nvjitlink

    [architecture] = re.findall(r"^\.target (\w+)", ptx, re.M)
    options = [f"-arch={architecture}", "-Xptxas=-v", "-verbose"]
    linker = nvjitlink.create(len(options), options)
    code = ptx.encode()
    nvjitlink.add_data(linker, nvjitlink.InputType.PTX, code, len(code), "kernel")
    if "cudaCG" in ptx:  # blocks that wait for each other: of NVIDIA's device runtime
        library = pathfinder.find_static_lib("cudadevrt")
        nvjitlink.add_file(linker, nvjitlink.InputType.LIBRARY, library)
    nvjitlink.complete(linker)
    log = bytearray(nvjitlink.get_info_log_size(linker))
    nvjitlink.get_info_log(linker, log)
    nvjitlink.destroy(linker)
    return log.decode(errors="replace")


def main() -> None:
    """Print every kernel."""
    from numba import float32, int32, int64

    from streamrnn.kernels.cuda import (
        features,
        network,
        outputs,
        persistent,
        roofline,
        tensor_cores,
        tiles,
    )
    from streamrnn.kernels.gates import DENSE, GRU, LSTM

    words, ints, floats = int64[::1], int32[::1], float32[::1]
    tiling = network.TILING
    threads = tiling.row_threads
    two, batch = (int64,) * 2, (int64,) * 3
    kernels: dict[str, tuple[Any, tuple[Any, ...]]] = {
        f"{kind} {width}": (
            tiles.make_layer_kernel(number, getattr(tiling, width)),
            (words, floats, floats, floats, floats, ints, *batch, int64),
        )
        for kind, number in (("dense", DENSE), ("gru", GRU), ("lstm", LSTM))
        for width in ("wide", "narrow")
    }
    kernels |= {
        f"{precision} {kind} {width}": (
            tensor_cores.make_tensor_kernel(
                number, getattr(network.TENSOR_TILING, width), precision
            ),
            (words, floats, floats, floats, floats, ints, *batch, int64),
        )
        for precision in ("tf32", "bfloat16")
        for kind, number in (("dense", DENSE), ("gru", GRU), ("lstm", LSTM))
        for width in ("wide", "narrow")
    }
    state = (words, floats, floats, floats, ints)
    kernels["features"] = (features.make_features_kernel(threads), (*state, floats, ints, *batch))
    kernels["finish"] = (outputs.make_finish_kernel(threads), (*state, floats, *batch))
    kernels["softmax"] = (outputs.make_softmax_kernel(threads), (floats, int64, *two))
    kernels["persistent"] = (
        persistent.make_persistent_kernel(threads),
        (*state, floats, ints, floats, *two, *two),
    )
    kernels["fma rate"] = (roofline._multiply_and_add, (floats, int64, floats))
    kernels["start"] = (outputs.make_start_kernel(threads), (floats, ints, floats))
    kernels["move"] = (outputs.make_move_kernel(threads), (floats, ints, floats, int64, int64))
    result = {}
    for name, (kernel, signature) in kernels.items():
        library = kernel.compile(signature).library
        ptx = library.get_asm_str()
        result[name] = {
            "llvm": library.get_llvm_str(),
            "ptx": ptx,
            "log": assemble(ptx),
            "machine_code": base64.b64encode(library.get_cubin().code).decode(),
        }
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
