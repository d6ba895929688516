"""The CPU as an engine's device: a slab in memory, and one compiled call for a whole batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from streamrnn.kernels.cpu import check_input, step_chunk, step_rows
from streamrnn.kernels.float_mode import enter_float_mode, leave_float_mode
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import int64_array, load_i64, store_i64
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
    "MISFIT",
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
DONE, STALE_ROW, ROW_TWICE, BAD_INPUT, MISFIT = range(5)
KIND_BITS = 3

# Words behind those of the plan: all that a call needs comes with one address.
(_SLAB, _MARKS, _MAX_STREAMS, _ADDRESSES) = range(PLAN_WORDS, PLAN_WORDS + 4)
_CALL_WORDS = _ADDRESSES + 3 * MAX_WAVE


class CpuDevice:
    """A slab in this process's memory, stepped by its kernels. See `streamrnn.engine.Device`.

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
        See `streamrnn.engine.Device.advance`. It is the compiled function's own entry, without
        numba's dispatcher, which would ask every argument for its type.
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
def _check(plan, rows, x, num_steps, marks, max_streams):  # type: ignore[no-untyped-def]
    """Do what `check_call` says; ``marks`` is an address."""
    if (
        len(rows) * num_steps != len(x)
        or x.shape[1] != plan[NUM_INPUTS]
        or (len(x) > 0 and x.shape[1] > 1 and x.strides[1] != 4)
        or (len(x) > 1 and x.strides[0] != 4 * x.shape[1])
    ):
        return MISFIT
    num_calls = marks + 16 * max_streams
    this_call = load_i64(num_calls) + 1
    store_i64(num_calls, this_call)
    for i in range(len(rows)):
        slot = rows[i] & SLOT_MASK
        generation = rows[i] >> GENERATION_SHIFT
        mark = marks + 16 * slot
        if slot >= max_streams or load_i64(mark) != generation or not generation & 1:
            return i << KIND_BITS | STALE_ROW
        if load_i64(mark + 8) == this_call:
            return i << KIND_BITS | ROW_TWICE
        store_i64(mark + 8, this_call)
    bad = check_input(plan, x.ctypes.data, len(x))
    if bad >= 0:
        return bad << KIND_BITS | BAD_INPUT
    return DONE


@jit
def check_call(plan, rows, x, num_steps, marks):  # type: ignore[no-untyped-def]
    """Find what is wrong with a call before anything has changed.

    Parameters
    ----------
    plan : ndarray of int64, shape (PLAN_WORDS,)
        Of the model.
    rows, x, num_steps
        See `streamrnn.engine.Device.advance`.
    marks : ndarray of int64, shape (max_streams + 1, 2)
        Each slot's generation and the call that it was last in; at the end the number of calls.

    Returns
    -------
    int64
        `DONE`, or what is wrong (low bits) and with which row or element of x (high bits).
    """
    return _check(plan, rows, x, num_steps, marks.ctypes.data, len(marks) - 1)


@jit
def _advance(call, rows, x, y, num_steps):  # type: ignore[no-untyped-def]
    """Check everything, then step everything. See `Device.advance`.

    Returns
    -------
    int64
        `DONE`, or what is wrong (low bits) and with which row or element of x (high bits).
    """
    plan = int64_array(call, _CALL_WORDS)
    answer = _check(plan, rows, x, num_steps, plan[_MARKS], plan[_MAX_STREAMS])
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
        row_addresses = int64_array(addresses, MAX_WAVE)
        x_addresses = int64_array(addresses + 8 * MAX_WAVE, MAX_WAVE)
        y_addresses = int64_array(addresses + 16 * MAX_WAVE, MAX_WAVE)
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
