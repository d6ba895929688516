"""Whole sequences through a model on the CPU, many at once: for what is not live.

The outputs are an `Engine`'s, to the bit.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.engine.device import BAD_INPUT, KIND_BITS
from streamrnn.engine.inputs import InputForm
from streamrnn.kernels.cpu.float_mode import enter_float_mode, leave_float_mode
from streamrnn.kernels.cpu.pack import aligned_floats
from streamrnn.kernels.cpu.plan import MAX_BATCH_ROWS, plan_at
from streamrnn.kernels.cpu.program import Program
from streamrnn.kernels.cpu.step import check_input, step_chunk, step_rows
from streamrnn.kernels.jit import jit
from streamrnn.kernels.memory import int64_array, load_i64
from streamrnn.kernels.virtual_memory import address_of
from streamrnn.model.model import Model
from streamrnn_client.protocol.input_names import origins_of

__all__ = ["Sequences", "in_batches"]

Index = NDArray[np.int64]

_LEAST_TOGETHER = 4  # of fewer rows each runs through its steps faster by itself


class Sequences:
    """Sequences that are all there, and a model that runs through them.

    Parameters
    ----------
    model : Model
        What to run.
    x : array_like, shape (N, num_inputs)
        Steps that the sequences are made of. Kept by reference where it is a contiguous array of
        float32 (uint32 for a token model): never change it then.

    Raises
    ------
    InputError
        If an input does not fit the model.
    """

    def __init__(self, model: Model, x: Any) -> None:
        form, outputs = InputForm(model.spec), model.spec.outputs
        self._x = form.as_array(x, (-1, form.num_inputs), "x")
        self._output_size = model.spec.output_size
        self._origins = origins_of([(item.origin, item.size) for item in outputs])
        self._program = Program(model)
        bad = _first_bad(self._program.plan_address, address_of(self._x), len(self._x))
        if bad >= 0:
            form.refuse(bad << KIND_BITS | BAD_INPUT, np.empty(0, np.int64), self._x)

    def new_states(self, num_rows: int) -> NDArray[np.float32]:
        """Return the rows of B streams that have seen nothing, 64-byte aligned."""
        initial = self._program.initial_row
        states = aligned_floats(num_rows * len(initial)).reshape(num_rows, len(initial))
        states[:] = initial
        return states

    def run(
        self, starts: Index, lengths: Index, states: NDArray[np.float32] | None = None
    ) -> NDArray[Any]:
        """Run B sequences, the fastest where they are alike in length.

        Parameters
        ----------
        starts, lengths : ndarray of int64, shape (B,)
            Rows of x that each sequence begins at and takes; they may overlap.
        states : ndarray or None
            From `new_states`, and changed to what the sequences end in; None: new ones.

        Returns
        -------
        ndarray of float32, shape (sum of lengths, output_size)
            Sequence after sequence; float64 if an output has an origin.
        """
        program, num_rows = self._program, len(starts)
        states = self.new_states(num_rows) if states is None else states
        if (
            np.any((starts < 0) | (lengths < 0) | (lengths > len(self._x) - starts))
            or states.shape != (num_rows, len(program.initial_row))
            or (num_rows and (address_of(states) % 64 or not states.flags.c_contiguous))
        ):
            raise ValueError("sequences must lie in x, and each have a row of new_states()")
        y = np.empty((int(lengths.sum()), self._output_size), np.float32)
        columns = (
            address_of(states) + program.row_bytes * np.arange(num_rows),
            address_of(self._x) + self._x.strides[0] * starts,
            address_of(y) + 4 * self._output_size * (np.cumsum(lengths) - lengths),
            lengths,
        )
        order = np.argsort(-lengths, kind="stable")
        table = np.ascontiguousarray(np.stack(columns)[:, order], np.int64)
        _run(program.plan_address, *(address_of(column) for column in table), num_rows)
        return y if self._origins is None else y + self._origins


def in_batches(lengths: Index, max_steps: int) -> Iterator[Index]:
    """Yield indices of sequences that are alike in length, of `max_steps` together if they can."""
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        num_rows = max(1, int(np.searchsorted(np.cumsum(lengths[order]), max_steps, "right")))
        yield order[:num_rows]
        order = order[num_rows:]


@jit
def _first_bad(plan_address: int, x: int, num_steps: int) -> int:
    """Return the first element of x that does not fit, or -1."""
    return check_input(plan_at(plan_address), x, num_steps)


@jit
def _run(plan_address: int, rows: int, xs: int, ys: int, lengths: int, num: int) -> None:
    """Run sequences, the longest first.

    The four are addresses of int64[num]: the state, the first x and y, and the steps of each.
    """
    plan = plan_at(plan_address)
    x_bytes, y_bytes = 4 * plan.num_inputs, 4 * plan.output_size
    before = enter_float_mode()
    for first in range(0, num, MAX_BATCH_ROWS):
        at = 8 * first
        going = min(MAX_BATCH_ROWS, num - first)
        row_addresses = int64_array(rows + at, MAX_BATCH_ROWS)
        x_addresses = int64_array(xs + at, MAX_BATCH_ROWS)
        y_addresses = int64_array(ys + at, MAX_BATCH_ROWS)
        t = 0
        while going > 0:
            if load_i64(lengths + at + 8 * (going - 1)) <= t:
                going -= 1
                continue
            if going < _LEAST_TOGETHER:
                break
            step_rows(plan, row_addresses, x_addresses, y_addresses, going)
            for i in range(going):
                x_addresses[i] += x_bytes
                y_addresses[i] += y_bytes
            t += 1
        for i in range(going):
            num_steps = load_i64(lengths + at + 8 * i) - t
            step_chunk(plan, row_addresses[i], x_addresses[i], y_addresses[i], num_steps)
    leave_float_mode(before)
