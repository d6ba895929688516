"""Compile every kernel as for a GPU, and run the host's part, where there is none.

``python -m tests.cuda.compiled PART`` prints JSON: of a part of the kernels their LLVM, and for
each architecture their PTX and the machine code that goes to the driver, which is the fake one; and
what went wrong in the checks of `tests.cuda.host_path` that run these kernels. A process of its
own: in the tests' process numba's simulator takes the compiler's place. Compiling takes nearly all
of the time, so what is compiled once serves both.
"""

from __future__ import annotations

import base64
import itertools
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
    "MORE_TENSOR_LAYERS",
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

TENSOR_LAYERS = (
    "tf32 dense narrow",
    "tf32 gru wide",
    "tf32 lstm narrow",
    "bfloat16 dense wide",
    "bfloat16 gru narrow",
    "bfloat16 lstm wide",
)
"""Of layers on tensor cores those that `make test` compiles: each cell, width and precision."""

MORE_TENSOR_LAYERS = (
    "tf32 dense wide",
    "tf32 gru narrow",
    "tf32 lstm wide",
    "bfloat16 dense narrow",
    "bfloat16 gru wide",
    "bfloat16 lstm narrow",
)
"""The others, for `make soak`."""

Kernels = dict[str, tuple[Any, tuple[Any, ...]]]


def _tiles() -> Kernels:
    """Return the kernels of batches in float32, with the types of their arguments."""
    from numba import float32, int32, int64

    from streamrnn.kernels.activations import TANH
    from streamrnn.kernels.cuda import network
    from streamrnn.kernels.cuda.products import BLEND, FORM, HEAD, NORM, RESET, Cell
    from streamrnn.kernels.gates import DENSE, GRU, LSTM

    words, ints, floats = int64[::1], int32[::1], float32[::1]
    layer = _layer_arguments()
    tiling = network.TILING
    kernels: Kernels = {}
    cells = {
        "head": Cell(DENSE, TANH, HEAD),
        "dense": Cell(DENSE, TANH),
        "gru": Cell(GRU),
        "lstm": Cell(LSTM),
    }
    forms = {
        "lstm form": Cell(LSTM, end=FORM),
        "projected": Cell(LSTM, end=FORM, is_hard=True, to_scratch=True),
        "gru form": Cell(GRU, end=FORM),
        "reset": Cell(GRU, end=RESET, is_hard=True),
        "blend": Cell(DENSE, end=BLEND),
        "lstm int8": Cell(LSTM, is_scaled=True),
    }
    widths = ("wide", "middle", "narrow")
    for (name, cell), (width, shape) in itertools.product(
        cells.items(), zip(widths, tiling.shapes, strict=True)
    ):
        if width != "middle" or name in ("gru", "lstm"):
            made = network._layer_kernel(cell, shape, "float32")
            kernels[f"{name} {width}"] = (made, layer)
    for name, cell in forms.items():
        made = network._layer_kernel(cell, tiling.shapes[0], "float32")
        kernels[f"{name} wide"] = (made, layer)
    features, move, softmax = network._row_kernels(tiling.row_threads)
    state = (words, floats, floats, floats, ints)
    kernels["features"] = (features, (*state, floats, ints, *(int64,) * 3))
    kernels["softmax"] = (softmax, (floats, int64, int64, int64))
    for name, cell in (("lstm", Cell(LSTM, end=NORM)), ("gru", Cell(GRU, end=NORM))):
        kernels[f"{name} norm"] = (network._norm_kernel(cell, tiling.row_threads), layer)
    kernels["move"] = (move, (words, floats, ints, floats, int64, int64))
    return kernels


def _others() -> Kernels:
    """Return the kernels of tensor cores, of chunks, and of the benchmark."""
    from numba import float32, int32, int64

    from streamrnn.kernels.cuda import network, persistent
    from streamrnn.kernels.cuda.plan import GpuPlan
    from streamrnn.kernels.cuda.products import RESET, Cell
    from streamrnn.kernels.gates import GRU
    from streamrnn_bench.step import gpu_rates

    words, ints, floats = int64[::1], int32[::1], float32[::1]
    tiling = network.TENSOR_TILING
    kernels = _tensor_layers(TENSOR_LAYERS)
    reset = network._layer_kernel(Cell(GRU, end=RESET), tiling.shapes[0], "bfloat16")
    kernels["bfloat16 reset wide"] = (reset, _layer_arguments())
    exchange = (words, floats, floats, words, ints, floats, ints, floats, *(int64,) * 5)
    for name, options in CHUNKS.items():
        model = random_model(np.random.default_rng(0), **options)
        shape = persistent.persistent_shape(GpuPlan(model), 132, 227 << 10, tiling.row_threads)
        assert shape is not None
        kernels[name] = (persistent.make_persistent_kernel(shape), exchange)
    kernels["fma rate"] = (gpu_rates._multiply_and_add, (floats, int64, floats))
    return kernels


def _tensor_layers(names: Iterable[str]) -> Kernels:
    """Return layers on tensor cores, by names such as ``"tf32 lstm wide"``."""
    from streamrnn.kernels.activations import TANH
    from streamrnn.kernels.cuda import network
    from streamrnn.kernels.cuda.products import Cell
    from streamrnn.kernels.gates import DENSE, GRU, LSTM

    cells = {"dense": Cell(DENSE, TANH), "gru": Cell(GRU), "lstm": Cell(LSTM)}
    kernels: Kernels = {}
    for name in names:
        precision, cell, width = name.split()
        tile = network.TENSOR_TILING.shapes[("wide", "narrow").index(width)]
        made = network._layer_kernel(cells[cell], tile, precision)
        kernels[name] = (made, _layer_arguments())
    return kernels


def _more() -> Kernels:
    return _tensor_layers(MORE_TENSOR_LAYERS)


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
