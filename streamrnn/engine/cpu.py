"""CPU device: a slab of rows in memory, and one compiled call for a whole batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from streamrnn.engine.device import DONE, SLOT_MASK, check_call
from streamrnn.kernels.borrowed import Borrowed
from streamrnn.kernels.cpu.float_mode import enter_float_mode, leave_float_mode
from streamrnn.kernels.cpu.plan import MAX_BATCH_ROWS, plan_at
from streamrnn.kernels.cpu.program import Program
from streamrnn.kernels.cpu.step import step_chunk, step_rows
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import int64_array
from streamrnn.kernels.pointers import field_address, pointer_to
from streamrnn.kernels.structs import I64, Struct
from streamrnn.kernels.virtual_memory import reserve, struct_address
from streamrnn.model.model import Model

__all__ = ["CpuDevice"]

_ROW_ALIGNMENT_BYTES = 64

_Addresses = Annotated[Any, np.int64, (MAX_BATCH_ROWS,)]


class _Call(Struct):
    """Arguments of a call, so that Python passes one address."""

    plan: I64  # address of the plan
    slab: I64
    marks: I64
    max_streams: I64
    rows: _Addresses  # scratch: of a batch
    xs: _Addresses
    ys: _Addresses


_call_at = pointer_to(_Call)


class CpuDevice:
    """CPU device: a slab in this process's memory, stepped by the CPU kernels.

    ``marks`` is [max_streams + 1, 2], see `check_call`. ``slab`` is [max_streams, row_bytes // 4],
    64-byte aligned; a slot's memory is committed when the slot is first used. ``advance`` is the
    compiled function's own entry point: numba's dispatcher would inspect the type of every
    argument.
    """

    def __init__(self, model: Model, marks: NDArray[np.int64], precision: str = "float32") -> None:
        self.program = Program(model, precision)
        max_streams = len(marks) - 1
        row_bytes = self.program.row_bytes
        memory = reserve(max_streams * row_bytes + _ROW_ALIGNMENT_BYTES)
        start = -memory.ctypes.data % _ROW_ALIGNMENT_BYTES
        slab = memory[start:][: max_streams * row_bytes].view(np.float32)
        self.arithmetic = self.program.arithmetic
        self.slab = slab.reshape(max_streams, row_bytes // 4)
        self._marks = marks
        self._call = _Call.one()
        self._call["plan"] = self.program.plan_address
        self._call["slab"], self._call["marks"] = slab.ctypes.data, marks.ctypes.data
        self._call["max_streams"] = max_streams
        entry = _entry(types.uint32 if model.spec.is_token else types.float32)
        self.advance: Callable[[NDArray[Any], NDArray[Any], NDArray[np.float32], int], int] = (
            functools.partial(entry, struct_address(self._call))
        )

    def start_rows(self, slots: NDArray[np.int64]) -> None:
        """Implement `Device.start_rows`."""
        self.slab[slots] = self.program.initial_row

    def read_rows(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Implement `Device.read_rows`."""
        return self.slab[slots]

    def write_rows(self, slots: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Implement `Device.write_rows`."""
        self.slab[slots] = rows


def _entry(element: types.Type) -> Callable[..., int]:
    """Return the compiled `_advance` for x of one type, without type checks."""
    signature = (
        types.int64,
        Borrowed(types.int64, 1, "A"),
        Borrowed(element, 2, "A"),
        Borrowed(types.float32, 2, "C"),
        types.int64,
    )
    _advance.compile(signature)
    entry: Callable[..., int] = _advance.overloads[signature].entry_point
    return entry


@jit
def _advance(call_address, rows, x, y, num_steps):  # type: ignore[no-untyped-def]
    """Check everything, then step everything. See `Device.advance`."""
    call = _call_at(call_address)
    plan = plan_at(call.plan)
    answer = check_call(plan, rows, x, num_steps, call.marks, call.max_streams)
    if answer != DONE:
        return answer
    before = enter_float_mode()
    x_bytes, y_bytes = 4 * plan.num_inputs, 4 * plan.output_size
    x_address, y_address = np.int64(x.ctypes.data), np.int64(y.ctypes.data)
    slab, row_bytes = call.slab, plan.row_bytes
    if num_steps != 1:
        for i in range(len(rows)):
            step_chunk(
                plan,
                slab + (rows[i] & SLOT_MASK) * row_bytes,
                x_address + i * num_steps * x_bytes,
                y_address + i * num_steps * y_bytes,
                num_steps,
            )
    else:
        row_addresses = int64_array(field_address(call, "rows"), MAX_BATCH_ROWS)
        x_addresses = int64_array(field_address(call, "xs"), MAX_BATCH_ROWS)
        y_addresses = int64_array(field_address(call, "ys"), MAX_BATCH_ROWS)
        for first in range(0, len(rows), MAX_BATCH_ROWS):
            num_rows = min(MAX_BATCH_ROWS, len(rows) - first)
            for i in range(num_rows):
                slot = rows[first + i] & SLOT_MASK
                row_addresses[i] = slab + slot * row_bytes
                x_addresses[i] = x_address + (first + i) * x_bytes
                y_addresses[i] = y_address + (first + i) * y_bytes
            step_rows(plan, row_addresses, x_addresses, y_addresses, num_rows)
    leave_float_mode(before)
    return DONE
