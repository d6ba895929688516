"""Builds the step for 64-bit ARM on any machine: `test_neon` runs it in an emulator.

The vectors are NEON's, four floats wide; numba compiles as ever, and LLVM makes ARM code of the
result. Everything that a `Program` owns goes into one image, in which each word that is an address
counts from the image's start; `harness.c` adds where the image lies, and calls.
"""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from streamrnn.kernels import vector_width

vector_width.WIDTH = vector_width.WIDTHS["neon"]  # before anything that is made of vectors

from numba.core import types  # noqa: E402
from numba.core.ccallback import CFunc  # noqa: E402

from streamrnn.kernels.cpu import program as cpu_program  # noqa: E402
from streamrnn.kernels.cpu import step as cpu  # noqa: E402
from streamrnn.kernels.cpu.blocks import make_block_cover  # noqa: E402
from streamrnn.kernels.cpu.plan import plan_at  # noqa: E402
from streamrnn.kernels.cpu.program import Program  # noqa: E402
from streamrnn.kernels.cpu.tiling import _make_cover  # noqa: E402
from streamrnn.kernels.jit import jit  # noqa: E402
from streamrnn.kernels.memory import int64_array as view  # noqa: E402
from streamrnn.kernels.precisions import PRECISIONS  # noqa: E402
from tests.kernels.neon.cases import CASES, IN_BLOCKS, NUM_STEPS, NUM_STREAMS, model_of  # noqa: E402

TRIPLE = "aarch64-unknown-linux-gnu"


@jit
def step(table, rows, xs, ys, num_rows):
    """`step_rows`, on addresses."""
    plan = plan_at(table)
    cpu.step_rows(plan, view(rows, num_rows), view(xs, num_rows), view(ys, num_rows), num_rows)
    return 0


@jit
def chunk(table, row, x, y, num_steps):
    """`step_chunk`, on addresses."""
    cpu.step_chunk(plan_at(table), row, x, y, num_steps)
    return 0


def ir_of(function, num_arguments: int, symbol: str) -> str:
    """LLVM's text of a function of int64 for ARM, under a name of our own."""
    compiled: Any = CFunc(
        function,
        ((types.int64,) * num_arguments, types.int64),
        locals={},
        options={"nopython": True, "error_model": "numpy"},
    )
    compiled.compile()
    text = compiled._library.get_llvm_str()
    (name,) = re.findall(r"^define i64 @(cfunc\.\w+)\(", text, re.MULTILINE)
    text = text.replace(f"@{name}", f"@{symbol}")
    text = re.sub(r"^target (datalayout|triple).*\n", "", text, flags=re.MULTILINE)
    # Reference counts of views that nobody owns; their body has an operation of x86.
    body = r"^define linkonce_odr void @(NRT_\w+)\(.*?^}\n"
    text = re.sub(body, r"declare void @\1(ptr)\n", text, flags=re.MULTILINE | re.DOTALL)
    return f'target triple = "{TRIPLE}"\n{text}'


def target_machine() -> llvm.TargetMachine:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(TRIPLE)
    return target.create_target_machine(cpu="neoverse-n1", opt=3, reloc="pic", codemodel="default")


def int64_offsets(array: np.ndarray) -> list[int]:
    """Where the int64 of an array, or of an array of structs, lie in it, in bytes."""

    def of_item(dtype: np.dtype) -> list[int]:
        if dtype.names is None:
            return [0] if dtype == np.int64 else []
        fields: Any = dtype.fields or {}
        return [start + place for inner, start, *_ in fields.values() for place in of_item(inner)]

    offsets = of_item(array.dtype)
    return [i * array.itemsize + offset for i in range(array.size) for offset in offsets]


class Image:
    """Arrays one after the other, and where addresses stand in them."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self.places: list[int] = []
        self.size = 0

    def add(self, array: np.ndarray) -> int:
        """Take an array in, as it is when `write` is called; return where it begins."""
        place = -(-self.size // 64) * 64
        self.arrays.append(array)
        self.places.append(place)
        self.size = place + array.nbytes
        return place

    def find(self, address: int) -> int | None:
        """Return the place of what lies at an address of this process."""
        for array, place in zip(self.arrays, self.places, strict=True):
            if array.ctypes.data <= address < array.ctypes.data + max(array.nbytes, 1):
                return place + address - array.ctypes.data
        return None

    def write(self, path: Path, calls: list[tuple[int, ...]], covers: tuple[int, int, int]) -> None:
        """Write the image, the places of its addresses, and what is to be called."""
        memory = bytearray(self.size)
        moved = []
        for array, place in zip(self.arrays, self.places, strict=True):
            content = array.copy()
            numbers = content.reshape(-1).view(np.uint8)
            for offset in int64_offsets(content):
                word = numbers[offset : offset + 8].view(np.int64)
                target = self.find(int(word[0]))
                if target is not None and int(word[0]) != 0:
                    word[0] = target
                    moved.append(place + offset)
            memory[place : place + content.nbytes] = content.tobytes()
        words = [self.size, len(moved), len(calls), *covers, *moved]
        for call in calls:
            words += call
        path.write_bytes(struct.pack(f"<{len(words)}q", *words) + memory)


def write_case(case: str, precision: str, path: Path) -> None:
    """Write the image that steps every stream, one batch a step, and then one as a chunk."""
    model, x = model_of(case)
    program = Program(model, precision)
    plan = np.asarray(program.plan).reshape(1)
    outputs = np.zeros((NUM_STREAMS + 1, NUM_STEPS, model.spec.output_size), np.float32)
    rows = np.tile(program.initial_row, (NUM_STREAMS + 1, 1))
    tables = np.zeros((NUM_STEPS, 3, NUM_STREAMS), np.int64)
    for t in range(NUM_STEPS):
        tables[t, 0] = [row.ctypes.data for row in rows[:-1]]
        tables[t, 1] = [values[t].ctypes.data for values in x]
        tables[t, 2] = [values[t].ctypes.data for values in outputs[:-1]]
    image = Image()
    image.add(outputs)  # first: that is what the harness writes back
    places = [image.add(array) for array in (plan, rows, x, tables)]
    for array in program._owned:
        image.add(array)
    table_place, row_place, x_place, tables_place = places
    calls = []
    for t in range(NUM_STEPS):
        pointers = [tables_place + tables[t, i].ctypes.data - tables.ctypes.data for i in range(3)]
        calls.append((0, table_place, *pointers, NUM_STREAMS))
    last_row = row_place + rows[-1].ctypes.data - rows.ctypes.data
    last_output = outputs[-1].ctypes.data - outputs.ctypes.data
    calls.append((1, table_place, last_row, x_place, last_output, NUM_STEPS))
    cover_place = table_place + plan["cover"].ctypes.data - plan.ctypes.data
    block_place = 0
    if case in IN_BLOCKS:
        product = plan["product"]
        product["block_bytes"] = IN_BLOCKS[case]
        block_place = table_place + product["block_cover"].ctypes.data - plan.ctypes.data
    image.write(path, calls, (cover_place, block_place, PRECISIONS[precision]))


def main(directory: Path) -> None:
    """Write the objects, and one image for each case and precision."""
    # `harness.c` puts in the address of ours; that of this machine is not compiled for nothing.
    setattr(cpu_program, "cover_address", lambda *_, **__: 0)  # noqa: B010
    machine = target_machine()
    functions = [(step.py_func, 5, "srnn_step"), (chunk.py_func, 5, "srnn_chunk")]
    for number in PRECISIONS.values():
        functions.append((_make_cover(number), 1, f"srnn_cover_{number}"))
        functions.append((make_block_cover(number), 1, f"srnn_blocks_{number}"))
    for function, num_arguments, symbol in functions:
        module = llvm.parse_assembly(ir_of(function, num_arguments, symbol))
        module.data_layout = str(machine.target_data)
        (directory / f"{symbol}.o").write_bytes(machine.emit_object(module))
    for case in CASES:
        for precision in PRECISIONS:
            write_case(case, precision, directory / f"{case}-{precision}.image")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
