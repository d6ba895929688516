"""Compile every kernel as for a GPU, and run the host's part, where there is none.

``python -m tests.cuda.compiled PART`` prints JSON: of a part of the kernels their LLVM, and for
each architecture their PTX and the machine code that goes to the driver, which is the fake one; and
what went wrong in the checks of `tests.cuda.host_path` that run these kernels. A process of its
own: in the tests' process numba's simulator takes the compiler's place. Compiling takes nearly all
of the time, so what is compiled once serves both.
"""

from __future__ import annotations

import base64
import json
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tests.cuda.host_path import CHECKS
from tests.support.models import EVERY_KIND_OF_INPUT, random_model

__all__ = [
    "ARCHITECTURES",
    "CHUNKS",
    "LAYERS",
    "MORE_LAYERS",
    "NEWEST",
    "OLDER",
    "PARTS",
    "TENSOR_LAYERS",
]

ARCHITECTURES = {"sm_80": (8, 0, ""), "sm_90a": (9, 0, "a")}
"""What the tests read, by the name in the PTX, as numba names it."""

NEWEST = "sm_90a"

OLDER = {
    "dense narrow",
    "gru wide",
    "head wide",
    "tf32 dense narrow",
    "bfloat16 gru narrow",
    "bfloat16 lstm wide",
    "softmax",
}
"""The kernels that are compiled for the older architecture too, one of each kind."""

CHUNKS: dict[str, dict[str, Any]] = {
    "persistent": {"layers": [("lstm", 512)], "inputs": 64, "head": None},
    "persistent stack": {
        "layers": [("gru", 40), ("rnn_tanh", 33)],
        "inputs": EVERY_KIND_OF_INPUT,
        "head": "tanh",
    },
}
"""Models whose kernels for chunks are read."""

LAYERS = (
    "head wide",
    "dense narrow",
    *(f"{cell} {width}" for cell in ("gru", "lstm") for width in ("wide", "middle", "narrow")),
    "gru form wide",
)
"""Of layers in float32 those that `make test` compiles: each kind of columns, width and end."""

TENSOR_LAYERS = ("tf32 dense narrow", "tf32 gru wide", "bfloat16 gru narrow", "bfloat16 lstm wide")
"""And on tensor cores: each precision, kind of columns and width."""

MORE_LAYERS = (
    "head narrow",
    "dense wide",
    *(f"{form} wide" for form in ("lstm form", "projected", "reset", "blend", "lstm int8")),
    *(f"tf32 {layer}" for layer in ("dense wide", "gru narrow", "lstm narrow", "lstm wide")),
    *(f"bfloat16 {layer}" for layer in ("dense narrow", "dense wide", "gru wide", "lstm narrow")),
    "bfloat16 reset wide",
)
"""The others, for `make soak`."""

Kernels = dict[str, tuple[Any, tuple[Any, ...]]]


def _layers(names: Iterable[str]) -> Kernels:
    """Return the kernels of layers, and the types of their arguments, by names as in `LAYERS`."""
    from streamrnn.kernels.activations import TANH
    from streamrnn.kernels.cuda import network
    from streamrnn.kernels.cuda.products import BLEND, FORM, HEAD, RESET, Cell
    from streamrnn.kernels.gates import DENSE, GRU, LSTM

    cells = {
        "head": Cell(DENSE, TANH, HEAD),
        "dense": Cell(DENSE, TANH),
        "gru": Cell(GRU),
        "lstm": Cell(LSTM),
        "lstm form": Cell(LSTM, end=FORM),
        "projected": Cell(LSTM, end=FORM, is_hard=True, to_scratch=True),
        "gru form": Cell(GRU, end=FORM),
        "reset": Cell(GRU, end=RESET, is_hard=True),
        "blend": Cell(DENSE, end=BLEND),
        "lstm int8": Cell(LSTM, is_scaled=True),
    }
    kernels: Kernels = {}
    for name in names:
        words = name.split()
        precision = words.pop(0) if words[0] in ("tf32", "bfloat16") else "float32"
        width = words.pop()
        if precision == "float32":
            shape = network.TILING.shapes[("wide", "middle", "narrow").index(width)]
        else:
            shape = network.TENSOR_TILING.shapes[("wide", "narrow").index(width)]
        made = network._layer_kernel(cells[" ".join(words)], shape, precision)
        kernels[name] = (made, _layer_arguments())
    return kernels


def _tiles() -> Kernels:
    """Return the kernels of batches in float32."""
    from numba import float32, int32, int64

    from streamrnn.kernels.cuda import network
    from streamrnn.kernels.cuda.products import NORM, Cell
    from streamrnn.kernels.gates import GRU, LSTM

    words, ints, floats = int64[::1], int32[::1], float32[::1]
    threads = network.TILING.row_threads
    kernels = _layers(LAYERS)
    features, move, softmax = network._row_kernels(threads)
    state = (words, floats, floats, floats, ints)
    kernels["features"] = (features, (*state, floats, ints, *(int64,) * 3))
    kernels["softmax"] = (softmax, (floats, int64, int64, int64))
    for name, cell in (("lstm", Cell(LSTM, end=NORM)), ("gru", Cell(GRU, end=NORM))):
        kernels[f"{name} norm"] = (network._norm_kernel(cell, threads), _layer_arguments())
    kernels["move"] = (move, (words, floats, ints, floats, int64, int64))
    return kernels


def _others() -> Kernels:
    """Return the kernels of tensor cores, of chunks, and of the benchmark."""
    from numba import float32, int32, int64

    from streamrnn.kernels.cuda import network, persistent
    from streamrnn.kernels.cuda.plan import GpuPlan
    from streamrnn_bench.step import gpu_rates

    words, ints, floats = int64[::1], int32[::1], float32[::1]
    threads = network.TILING.row_threads
    kernels = _layers(TENSOR_LAYERS)
    exchange = (words, floats, floats, words, ints, floats, ints, floats, *(int64,) * 5)
    for name, options in CHUNKS.items():
        model = random_model(np.random.default_rng(0), **options)
        shape = persistent.persistent_shape(GpuPlan(model), 132, 227 << 10, threads)
        assert shape is not None
        kernels[name] = (persistent.make_persistent_kernel(shape), exchange)
    kernels["fma rate"] = (gpu_rates._multiply_and_add, (floats, int64, floats))
    return kernels


def _more() -> Kernels:
    return _layers(MORE_LAYERS)


def _layer_arguments() -> tuple[Any, ...]:
    from numba import float32, int32, int64

    return (int64[::1], *(float32[::1],) * 4, int32[::1], float32[::1], *(int64,) * 6)


PARTS: dict[str, Callable[[], Kernels]] = {
    "tiles": _tiles,
    "others": _others,
    "more": _more,
    "server": dict,
}
"""The kernels that are read, by the part of `CHECKS` that runs some of them."""


def main() -> None:
    """Print the kernels and the results of the part that is asked for."""
    [part] = sys.argv[1:]
    kernels: dict[str, Any] = {}
    for name, (kernel, signature) in PARTS[part]().items():
        library = kernel.compile(signature).library
        kernels[name] = {"llvm": library.get_llvm_str()}
        for architecture, capability in ARCHITECTURES.items():
            if architecture != NEWEST and name not in OLDER:
                continue
            kernels[name][architecture] = {
                "ptx": library.get_asm_str(cc=capability),
                "machine_code": base64.b64encode(library.get_cubin(cc=capability).code).decode(),
            }
    results = {}
    for name, run in CHECKS[part].items():
        try:
            run()
            results[name] = ""
        except BaseException:
            results[name] = traceback.format_exc()
    json.dump({"kernels": kernels, "checks": results}, sys.stdout)


if __name__ == "__main__":
    main()
