"""Steps of a model in a thread of Python's, beside those that shards compute, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.cpu.float_mode import enter_float_mode, leave_float_mode
from streamrnn.kernels.cpu.pack import aligned_floats
from streamrnn.kernels.cpu.plan import plan_at
from streamrnn.kernels.cpu.program import Program
from streamrnn.kernels.cpu.step import check_input, step_rows
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import int64_array
from streamrnn.kernels.virtual_memory import address_of

__all__ = ["Rerun", "find_misfit", "run_steps"]


class Rerun:
    """One or more streams of a model that all get the same inputs.

    Parameters
    ----------
    program : Program
        Which no other thread uses meanwhile.
    rows : sequence of bytes or None
        The streams' rows before their first step; None: that of a new stream.
    """

    def __init__(self, program: Program, rows: Sequence[bytes | None]) -> None:
        self._program, self._num_rows = program, len(rows)
        self._rows = aligned_floats(len(rows) * program.row_bytes // 4).reshape(len(rows), -1)
        for row, data in zip(self._rows, rows, strict=True):
            row[:] = program.initial_row if data is None else np.frombuffer(data, "<f4")
        self._tables = np.zeros((3, len(rows)), np.int64)
        self._tables[0] = address_of(self._rows) + program.row_bytes * np.arange(len(rows))

    def num_fitting(self, x: NDArray[Any]) -> int:
        """Return how many steps of x come before the first that the model refuses.

        x is as `run` takes it.
        """
        bad = find_misfit(self._program.plan_address, address_of(x), len(x))
        return len(x) if bad < 0 else bad // self._program.spec.num_inputs

    def run(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Take some steps.

        Parameters
        ----------
        x : ndarray of float32 or uint32, shape (T, num_inputs)
            In C order; all of it fits.

        Returns
        -------
        ndarray of float32, shape (number of rows, T, output_size)
        """
        y = np.empty((self._num_rows, len(x), self._program.spec.output_size), np.float32)
        addresses = (address_of(self._tables), address_of(x), address_of(y))
        run_steps(self._program.plan_address, *addresses, self._num_rows, len(x))
        return y


@jit
def run_steps(
    plan_address: int, tables: int, x: int, y: int, num_rows: int, num_steps: int
) -> None:
    """Advance streams by the same steps; ``tables`` is int64[3, num_rows], the first their rows."""
    plan = plan_at(plan_address)
    x_bytes, y_bytes = 4 * plan.num_inputs, 4 * plan.output_size
    rows = int64_array(tables, num_rows)
    xs = int64_array(tables + 8 * num_rows, num_rows)
    ys = int64_array(tables + 16 * num_rows, num_rows)
    before = enter_float_mode()
    for t in range(num_steps):
        for k in range(num_rows):
            xs[k] = x + t * x_bytes
            ys[k] = y + (k * num_steps + t) * y_bytes
        step_rows(plan, rows, xs, ys, num_rows)
    leave_float_mode(before)


@jit
def find_misfit(plan_address: int, x: int, num_steps: int) -> int:
    """Return the first element of x that a model refuses, or -1."""
    return check_input(plan_at(plan_address), x, num_steps)
