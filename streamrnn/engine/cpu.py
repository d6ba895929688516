"""The CPU as an engine's device: a slab in memory, and one compiled call for a whole batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from streamrnn.engine.device import DONE, SLOT_MASK, check_call
from streamrnn.kernels.cpu.float_mode import enter_float_mode, leave_float_mode
from streamrnn.kernels.cpu.plan import (
    MAX_BATCH_ROWS,
    NUM_INPUTS,
    OUTPUT_SIZE,
    PLAN_WORDS,
    ROW_BYTES,
    Program,
)
from streamrnn.kernels.cpu.step import step_chunk, step_rows
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import int64_array
from streamrnn.kernels.virtual_memory import reserve
from streamrnn.model.model import Model

__all__ = ["CpuDevice"]

_ROW_ALIGNMENT_BYTES = 64

# Words behind those of the plan: all that a call needs comes with one address.
(_SLAB, _MARKS, _MAX_STREAMS, _ADDRESSES) = range(PLAN_WORDS, PLAN_WORDS + 4)
_CALL_WORDS = _ADDRESSES + 3 * MAX_BATCH_ROWS


class CpuDevice:
    """A slab in this process's memory, stepped by its kernels: a `streamrnn.engine.device.Device`.

    Parameters
    ----------
    model : Model
        What to run.
    marks : ndarray of int64, shape (max_streams + 1, 2)
        See `check_call`. Memory of the slab is taken only for the slots that are used.
    precision : str
        How the weights are stored. See `Program`.

    Attributes
    ----------
    program : Program
        The model made ready.
    arithmetic : str
        See `Program.arithmetic`.
    slab : ndarray of float32, shape (max_streams, row_bytes // 4)
        One row a slot, 64-byte aligned.
    advance : callable
        See `streamrnn.engine.device.Device.advance`. It is the compiled function's own entry,
        without numba's dispatcher, which would ask every argument for its type.
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
        self._call = np.zeros(_CALL_WORDS, dtype=np.int64)
        self._call[:PLAN_WORDS] = self.program.plan
        self._call[_SLAB], self._call[_MARKS] = slab.ctypes.data, marks.ctypes.data
        self._call[_MAX_STREAMS] = max_streams
        entry = _entry(types.uint32 if model.spec.is_token else types.float32)
        self.advance: Callable[[NDArray[Any], NDArray[Any], NDArray[np.float32], int], int] = (
            functools.partial(entry, self._call.ctypes.data)
        )

    def start_rows(self, slots: NDArray[np.int64]) -> None:
        """See `streamrnn.engine.device.Device.start_rows`.

        Parameters
        ----------
        slots
            As there.
        """
        self.slab[slots] = self.program.initial_row

    def read_rows(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `streamrnn.engine.device.Device.read_rows`.

        Parameters
        ----------
        slots
            As there.

        Returns
        -------
        ndarray of float32
        """
        return self.slab[slots]

    def write_rows(self, slots: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """See `streamrnn.engine.device.Device.write_rows`.

        Parameters
        ----------
        slots, rows
            As there.
        """
        self.slab[slots] = rows


def _entry(element: types.Type) -> Callable[..., int]:
    """Return the compiled `_advance` as Python calls it, for x of one type.

    It takes exact types only: a caller has made sure of them.
    """
    signature = (
        types.int64,
        types.Array(types.int64, 1, "A"),
        types.Array(element, 2, "A"),
        types.Array(types.float32, 2, "C"),
        types.int64,
    )
    _advance.compile(signature)
    entry: Callable[..., int] = _advance.overloads[signature].entry_point
    return entry


@jit
def _advance(call, rows, x, y, num_steps):  # type: ignore[no-untyped-def]
    """Check everything, then step everything. See `streamrnn.engine.device.Device.advance`.

    Returns
    -------
    int64
        `DONE`, or what is wrong (low bits) and with which row or element of x (high bits).
    """
    plan = int64_array(call, _CALL_WORDS)
    answer = check_call(plan, rows, x, num_steps, plan[_MARKS], plan[_MAX_STREAMS])
    if answer != DONE:
        return answer
    before = enter_float_mode()
    x_bytes, y_bytes = 4 * plan[NUM_INPUTS], 4 * plan[OUTPUT_SIZE]
    slab, row_bytes = plan[_SLAB], plan[ROW_BYTES]
    if num_steps != 1:
        for i in range(len(rows)):
            step_chunk(
                plan,
                slab + (rows[i] & SLOT_MASK) * row_bytes,
                x.ctypes.data + i * num_steps * x_bytes,
                y.ctypes.data + i * num_steps * y_bytes,
                num_steps,
            )
    else:
        addresses = call + 8 * _ADDRESSES
        row_addresses = int64_array(addresses, MAX_BATCH_ROWS)
        x_addresses = int64_array(addresses + 8 * MAX_BATCH_ROWS, MAX_BATCH_ROWS)
        y_addresses = int64_array(addresses + 16 * MAX_BATCH_ROWS, MAX_BATCH_ROWS)
        for first in range(0, len(rows), MAX_BATCH_ROWS):
            num_rows = min(MAX_BATCH_ROWS, len(rows) - first)
            for i in range(num_rows):
                slot = rows[first + i] & SLOT_MASK
                row_addresses[i] = slab + slot * row_bytes
                x_addresses[i] = x.ctypes.data + (first + i) * x_bytes
                y_addresses[i] = y.ctypes.data + (first + i) * y_bytes
            step_rows(plan, row_addresses, x_addresses, y_addresses, num_rows)
    leave_float_mode(before)
    return DONE
