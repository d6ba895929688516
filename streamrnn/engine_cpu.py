"""The CPU as an engine's device: a slab in memory, and one compiled call for a whole batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.cpu import check_input, step_chunk, step_rows
from streamrnn.kernels.float_mode import enter_float_mode, leave_float_mode
from streamrnn.kernels.jit import jit
from streamrnn.kernels.plan import (
    MAX_WAVE,
    NUM_INPUTS,
    OUTPUT_SIZE,
    PLAN_WORDS,
    ROW_BYTES,
    Program,
)
from streamrnn.model import Model
from streamrnn.state.slab import reserve

__all__ = [
    "BAD_INPUT",
    "DONE",
    "GENERATION_SHIFT",
    "KIND_BITS",
    "ROW_TWICE",
    "SLOT_MASK",
    "STALE_ROW",
    "CpuDevice",
    "check_call",
]

_ROW_ALIGNMENT_BYTES = 64
GENERATION_SHIFT = 32  # a row's number is its slot, and above it the slot's generation
SLOT_MASK = (1 << GENERATION_SHIFT) - 1

# What a call answers: a kind, and above it the item it concerns.
DONE, STALE_ROW, ROW_TWICE, BAD_INPUT = range(4)
KIND_BITS = 2


class CpuDevice:
    """A slab in this process's memory, stepped by its kernels. See `streamrnn.engine.Device`.

    Parameters
    ----------
    model : Model
        What to run.
    max_streams : int
        Rows of the slab. Memory is taken only for those that are used.
    precision : str
        How the weights are stored. See `Program`.

    Attributes
    ----------
    program : Program
        The model made ready.
    slab : ndarray of float32, shape (max_streams, row_bytes // 4)
        One row a slot, 64-byte aligned.
    """

    def __init__(self, model: Model, max_streams: int, precision: str = "float32") -> None:
        self.program = Program(model, precision)
        row_bytes = self.program.row_bytes
        memory = reserve(max_streams * row_bytes + _ROW_ALIGNMENT_BYTES)
        start = -memory.ctypes.data % _ROW_ALIGNMENT_BYTES
        slab = memory[start:][: max_streams * row_bytes].view(np.float32)
        self.slab = slab.reshape(max_streams, row_bytes // 4)
        # One array more to hand over costs 0.1 µs a call, so the slab's address rides on the plan.
        self._plan = np.append(self.program.plan, slab.ctypes.data)

    def advance(
        self,
        rows: NDArray[np.int64],
        x: NDArray[Any],
        y: NDArray[np.float32],
        num_steps: int,
        marks: NDArray[np.int64],
    ) -> int:
        """See `streamrnn.engine.Device.advance`.

        Parameters
        ----------
        rows, x, y, num_steps, marks
            As there.

        Returns
        -------
        int
        """
        answer: int = _advance(self._plan, rows, x, y, num_steps, marks)
        return answer

    def read_row(self, slot: int) -> NDArray[np.float32]:
        """See `streamrnn.engine.Device.read_row`.

        Parameters
        ----------
        slot : int
            As there.

        Returns
        -------
        ndarray of float32
        """
        return self.slab[slot].copy()

    def write_row(self, slot: int, row: NDArray[np.float32]) -> None:
        """See `streamrnn.engine.Device.write_row`.

        Parameters
        ----------
        slot, row
            As there.
        """
        self.slab[slot] = row

    def start_row(self, slot: int) -> None:
        """See `streamrnn.engine.Device.start_row`.

        Parameters
        ----------
        slot
            As there.
        """
        self.slab[slot] = self.program.initial_row


@jit
def check_call(plan, rows, x, marks):  # type: ignore[no-untyped-def]
    """Find what is wrong with a call before anything has changed.

    Parameters
    ----------
    plan : ndarray of int64, shape (PLAN_WORDS,)
        Of the model.
    rows, x, marks
        See `streamrnn.engine.Device.advance`.

    Returns
    -------
    int64
        `DONE`, or what is wrong (low bits) and with which row or element of x (high bits).
    """
    max_streams = len(marks) - 1
    this_call = marks[max_streams, 0] + 1
    marks[max_streams, 0] = this_call
    for i in range(len(rows)):
        slot = rows[i] & SLOT_MASK
        generation = rows[i] >> GENERATION_SHIFT
        if slot >= max_streams or marks[slot, 0] != generation or not generation & 1:
            return i << KIND_BITS | STALE_ROW
        if marks[slot, 1] == this_call:
            return i << KIND_BITS | ROW_TWICE
        marks[slot, 1] = this_call
    bad = check_input(plan, x.ctypes.data, len(x))
    if bad >= 0:
        return bad << KIND_BITS | BAD_INPUT
    return DONE


@jit
def _advance(plan, rows, x, y, num_steps, marks):  # type: ignore[no-untyped-def]
    """Check everything, then step everything. See `Device.advance`.

    Returns
    -------
    int64
        `DONE`, or what is wrong (low bits) and with which row or element of x (high bits).
    """
    answer = check_call(plan, rows, x, marks)
    if answer != DONE:
        return answer
    before = enter_float_mode()
    x_bytes, y_bytes = 4 * plan[NUM_INPUTS], 4 * plan[OUTPUT_SIZE]
    slab, row_bytes = plan[PLAN_WORDS], plan[ROW_BYTES]
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
        row_addresses = np.empty(MAX_WAVE, dtype=np.int64)
        x_addresses = np.empty(MAX_WAVE, dtype=np.int64)
        y_addresses = np.empty(MAX_WAVE, dtype=np.int64)
        for first in range(0, len(rows), MAX_WAVE):
            num_rows = min(MAX_WAVE, len(rows) - first)
            for i in range(num_rows):
                slot = rows[first + i] & SLOT_MASK
                row_addresses[i] = slab + slot * row_bytes
                x_addresses[i] = x.ctypes.data + (first + i) * x_bytes
                y_addresses[i] = y.ctypes.data + (first + i) * y_bytes
            step_rows(plan, row_addresses, x_addresses, y_addresses, num_rows)
    leave_float_mode(before)
    return DONE
