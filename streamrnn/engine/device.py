"""Interface between an `Engine` and the device that holds and steps its streams.

A row's number is its slot and, above it, the slot's generation: odd while a stream lives there,
raised when one comes or goes. So the number of a closed stream is never valid again.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.cpu.plan import Plan
from streamrnn.kernels.cpu.program import Program
from streamrnn.kernels.cpu.step import check_input
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import load_i64, store_i64

__all__ = [
    "BAD_INPUT",
    "DONE",
    "GENERATION_SHIFT",
    "KIND_BITS",
    "MISFIT",
    "ROW_TWICE",
    "SLOT_MASK",
    "STALE_ROW",
    "Device",
    "check_call",
]

GENERATION_SHIFT = 32
SLOT_MASK = (1 << GENERATION_SHIFT) - 1

# What a call answers: a kind, and above it the item it concerns.
DONE, STALE_ROW, ROW_TWICE, BAD_INPUT, MISFIT = range(5)
KIND_BITS = 3


class Device(Protocol):
    """Device that holds a model's streams and steps them.

    ``program`` is the model as the CPU's kernels see it, on every device: the layout of a row, and
    the check of inputs. ``arithmetic`` names what decides the bits of outputs besides model and
    inputs.
    """

    program: Program
    arithmetic: str

    def advance(
        self,
        rows: NDArray[np.int64],
        x: NDArray[Any],
        y: NDArray[np.float32],
        num_steps: int,
        /,
    ) -> int:
        """Check everything, then advance every row by ``num_steps``, or none.

        ``rows`` [B] come from `streamrnn.Engine.rows`, x [B * num_steps, num_inputs] has each row's
        inputs one after the other (float32, or uint32 for a token model), y [B * num_steps,
        output_size] is contiguous and filled. Returns `DONE`, or what is wrong (low bits) and with
        which row or element of x (high bits); `MISFIT` if x is not contiguous or a shape is wrong.
        """

    def start_rows(self, slots: NDArray[np.int64]) -> None:
        """Put streams' rows into the initial state; all slots differ."""

    def read_rows(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return copies of rows, [n, row_bytes // 4], the same layout on every device."""

    def write_rows(self, slots: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Replace streams' rows by rows from `read_rows` of any device; all slots differ."""


@jit
def check_call(  # type: ignore[no-untyped-def]
    plan: Plan, rows, x, num_steps: int, marks: int, max_streams: int
) -> int:
    """Check a call before anything changes; return the answer of `Device.advance`.

    ``marks`` is the address of int64[max_streams + 1, 2]: each slot's generation and the call that
    it was last in; at the end the number of calls.
    """
    if (
        len(rows) * num_steps != len(x)
        or x.shape[1] != plan.num_inputs
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
    bad = check_input(plan, np.int64(x.ctypes.data), len(x))
    if bad >= 0:
        return bad << KIND_BITS | BAD_INPUT
    return DONE
