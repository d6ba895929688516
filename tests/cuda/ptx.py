"""Compile every kernel as it is compiled for a GPU, where there is none.

``python -m tests.cuda.ptx PART OF`` prints JSON: for each kernel of a part of them its LLVM, and
for each architecture its PTX and the machine code that goes to the driver, which is the fake one. A
process of its own: in the tests' process numba's simulator takes the compiler's place, and
`disassemble` shows what came out.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.support.models import EVERY_KIND_OF_INPUT, random_model

_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([\w.]+)(.*);")
_TARGET = re.compile(r"`\((\.L_\w+)\)")


CHUNKS: dict[str, dict[str, Any]] = {
    "persistent": {"layers": [("lstm", 512)], "inputs": 64, "head": None},
    "persistent stack": {
        "layers": [("gru", 40), ("rnn_tanh", 33)],
        "inputs": EVERY_KIND_OF_INPUT,
        "head": "tanh",
    },
}
"""Models whose kernels for chunks are read."""

ARCHITECTURES = {"sm_80": (8, 0, ""), "sm_90a": (9, 0, "a")}
"""What the tests read, by the name in the PTX, as numba names it."""


def assemble(ptx: str) -> str:
    """Return what the assembler says about registers, memory and spills."""
    from cuda.bindings import nvjitlink

    [architecture] = re.findall(r"^\.target (\w+)", ptx, re.M)
    options = [f"-arch={architecture}", "-Xptxas=-v", "-verbose"]
    linker = nvjitlink.create(len(options), options)
    code = ptx.encode()
    nvjitlink.add_data(linker, nvjitlink.InputType.PTX, code, len(code), "kernel")
    nvjitlink.complete(linker)
    log = bytearray(nvjitlink.get_info_log_size(linker))
    nvjitlink.get_info_log(linker, log)
    nvjitlink.destroy(linker)
    return log.decode(errors="replace")


def main() -> None:
    """Print the kernels of the part that is asked for."""
    from numba import float32, int32, int64

    from streamrnn.kernels.activations import IDENTITY, TANH
    from streamrnn.kernels.cuda import (
        features,
        network,
        outputs,
        persistent,
        roofline,
        tensor_cores,
        tiles,
    )
    from streamrnn.kernels.cuda.plan import BLEND, FORM, RESET, Cell, GpuPlan
    from streamrnn.kernels.gates import DENSE, GRU, LSTM

    words, ints, floats = int64[::1], int32[::1], float32[::1]
    tiling = network.TILING
    threads = tiling.row_threads
    two, batch = (int64,) * 2, (int64,) * 3
    layer = (words, floats, floats, floats, floats, ints, *batch)
    cells = {
        "head": Cell(DENSE, IDENTITY),
        "dense": Cell(DENSE, TANH),
        "gru": Cell(GRU),
        "lstm": Cell(LSTM),
    }
    forms = {
        "lstm form": Cell(LSTM, end=FORM),
        "reset": Cell(GRU, end=RESET, is_hard=True),
        "blend": Cell(DENSE, end=BLEND),
    }
    shapes: dict[str, Any] = {"wide": tiling.wide, "narrow": tiling.narrow}
    tensor_shapes: dict[str, Any] = {
        "wide": network.TENSOR_TILING.wide,
        "narrow": network.TENSOR_TILING.narrow,
    }
    kernels: dict[str, tuple[Any, tuple[Any, ...]]] = {}
    for (name, cell), (width, shape) in itertools.product(cells.items(), shapes.items()):
        kernels[f"{name} {width}"] = (tiles.make_layer_kernel(cell, shape), layer)
    for name, cell in forms.items():
        kernels[f"{name} wide"] = (tiles.make_layer_kernel(cell, shapes["wide"]), layer)
    del cells["head"]
    for (name, cell), width in itertools.product(cells.items(), shapes):
        for precision in ("tf32", "bfloat16"):
            made = tensor_cores.make_tensor_kernel(cell, tensor_shapes[width], precision)
            kernels[f"{precision} {name} {width}"] = (made, layer)
    state = (words, floats, floats, floats, ints)
    kernels["features"] = (features.make_features_kernel(threads), (*state, floats, ints, *batch))
    kernels["finish"] = (outputs.make_finish_kernel(threads), (*state, floats, *batch))
    kernels["softmax"] = (outputs.make_softmax_kernel(threads), (floats, int64, *two))
    exchange = (words, floats, floats, words, ints, floats, ints, floats, *two, *two)
    for name, options in CHUNKS.items():
        model = random_model(np.random.default_rng(0), **options)
        shape = persistent.persistent_shape(GpuPlan(model), 132, 227 << 10, threads)
        kernels[name] = (persistent.make_persistent_kernel(shape), exchange)
    kernels["fma rate"] = (roofline._multiply_and_add, (floats, int64, floats))
    kernels["start"] = (outputs.make_start_kernel(threads), (floats, ints, floats))
    kernels["move"] = (outputs.make_move_kernel(threads), (floats, ints, floats, int64, int64))
    part, num_parts = map(int, sys.argv[1:])
    result: dict[str, Any] = {}
    for name, (kernel, signature) in list(kernels.items())[part::num_parts]:
        library = kernel.compile(signature).library
        result[name] = {"llvm": library.get_llvm_str()}
        for architecture, capability in ARCHITECTURES.items():
            result[name][architecture] = {
                "ptx": library.get_asm_str(cc=capability),
                "machine_code": base64.b64encode(library.get_cubin(cc=capability).code).decode(),
            }
    json.dump(result, sys.stdout)


@dataclass(frozen=True)
class Loop:
    """The instructions from a label to the jump back to it, by name: ``FFMA``, ``LDS.128``."""

    names: tuple[str, ...]

    def count(self, prefix: str) -> int:
        """Return how many instructions begin so."""
        return sum(name == prefix or name.startswith(prefix + ".") for name in self.names)

    def share(self, prefix: str) -> float:
        """Return their part of the loop."""
        return self.count(prefix) / len(self.names)


def disassemble(machine_code: bytes, entry: str) -> list[tuple[str, str]]:
    """Return a kernel's labels and instructions, (name, operands); a label has no operands.

    Skips the test where there is no disassembler.
    """
    from cuda import pathfinder

    tool = pathfinder.find_nvidia_binary_utility("nvdisasm")
    if tool is None:
        pytest.skip("needs nvdisasm: pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        text = subprocess.check_output([tool, "-c", file.name], text=True)
    [section] = re.findall(
        rf"^\s*\.section\s+\.text\.{entry},.*?(?=^\s*\.section\s|\Z)", text, re.M | re.S
    )
    found = []
    for line in section.splitlines():
        if label := _LABEL.match(line):
            found.append((label[1] + ":", ""))
        elif instruction := _INSTRUCTION.match(line):
            found.append((instruction[1], instruction[2]))
    return found


def loops_of(code: list[tuple[str, str]]) -> list[Loop]:
    """Return the loops of a kernel that hold no other loop."""
    places, spans = {}, []
    for place, (name, operands) in enumerate(code):
        if name.endswith(":"):
            places[name[:-1]] = place
        elif name.startswith("BRA"):
            target = _TARGET.search(operands)
            if target and target[1] in places:
                spans.append((places[target[1]], place))
    inner = [
        (start, end)
        for start, end in spans
        if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in spans)
    ]
    return [
        Loop(tuple(name for name, _ in code[start : end + 1] if not name.endswith(":")))
        for start, end in inner
    ]


def num_registers(machine_code: bytes, entry: str) -> int:
    """Return the registers that a kernel's section of the ELF file asks for."""
    sections = elf_sections(machine_code)
    text = sections[f".text.{entry}"]
    info = sections[".nv.info"]
    place, end = info[4], info[4] + info[5]
    while place < end:
        kind, attribute, size = struct.unpack_from("<BBH", machine_code, place)
        place += 4
        if kind == 4:
            if attribute == 0x2F:
                symbol, count = struct.unpack_from("<II", machine_code, place)
                if symbol == text[7] & 0xFFFFFF:
                    return int(count)
            place += size
    raise AssertionError(entry)


def elf_sections(machine_code: bytes) -> dict[str, tuple[int, ...]]:
    """Return the section headers of a 64-bit ELF file by their names."""
    [start] = struct.unpack_from("<Q", machine_code, 0x28)
    size, count, names = struct.unpack_from("<HHH", machine_code, 0x3A)
    headers = [
        struct.unpack_from("<IIQQQQIIQQ", machine_code, start + k * size) for k in range(count)
    ]
    texts = machine_code[headers[names][4] :]
    return {texts[h[0] : texts.index(b"\0", h[0])].decode(): h for h in headers}


if __name__ == "__main__":
    main()
