"""A recurrent layer over a chunk of time and back, for a whole batch.

Backpropagation through time after Werbos, "Backpropagation through time: what it does and how to do
it", Proc. IEEE 78(10), 1990. Cells: Elman 1990 (tanh or relu); GRU in PyTorch's form (Cho et al.
2014, the reset after the product); LSTM with forget gate (Hochreiter and Schmidhuber 1997; Gers et
al. 2000).

What a step reads, x, 1 and h of the step before, lies side by side in one array, xh: it is the
operand of the products forward, and of the one product over time that gives the gradients of all
weights. The gates' gradients take the gates' places.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from streamrnn.gradients import passes
from streamrnn.gradients.cells import CELLS, GATES, H_SLOTS, NUM_SLOTS, TILE_KINDS, X_SLOTS
from streamrnn.gradients.node import Node
from streamrnn.gradients.pack import pack_backward, pack_forward, set_gradients
from streamrnn.gradients.passes import LayerPass
from streamrnn.gradients.products import (
    OuterProducts,
    RowProducts,
    flat_rows,
    in_vectors,
    is_in_vectors,
)
from streamrnn.gradients.scratch import Array, State
from streamrnn.gradients.threads import share_rows
from streamrnn.kernels.gates import LSTM, SHAPES
from streamrnn.kernels.vector_width import WIDTH

__all__ = ["Recurrent", "Weights"]


class Weights(NamedTuple):
    """A layer's parameters, or their gradients: in PyTorch's shapes and order of gates."""

    ih: Array  # [G * H, I]
    hh: Array  # [G * H, H]
    bias_ih: Array  # [G * H]
    bias_hh: Array  # [G * H]


class Recurrent(Node):
    """One layer: its arrays, and the way through them.

    The parameters are read, and their gradients set; both stay the caller's. Float32 or
    float64, as the parameters are.
    """

    def __init__(self, cell: str, parameters: Weights, gradients: Weights) -> None:
        super().__init__(parameters.ih.shape[1], parameters.hh.shape[1], parameters.ih.dtype)
        self.cell, self.parameters, self.gradients = cell, parameters, gradients
        code = CELLS[cell]
        self.num_slots, self.kind = NUM_SLOTS[code], TILE_KINDS[code]
        self.is_lstm = self.kind == LSTM
        self.factors = np.array(SHAPES[self.kind].factors, self.dtype)
        self.padded = in_vectors(self.output_size)
        self.h_slots = np.array(H_SLOTS[code]) * self.padded
        self.x_slots = np.array(X_SLOTS[code]) * self.padded
        # A row of xh: padding, x, 1, h; so that h is aligned, and what is real lies together.
        self.h_start = in_vectors(self.num_x + 1)
        self.x_start = self.h_start - 1 - self.num_x
        kept = self.h_start + (self.num_slots + 2 * self.is_lstm) * self.padded
        self.bytes_a_step = self.dtype.itemsize * (kept + 2 * self.padded + in_vectors(self.num_x))
        self.memory = np.zeros(1, LayerPass.dtype)
        self.address = self.memory.ctypes.data
        self.num_sums = self.num_x + 1 + self.output_size
        self.sums = self.scratch.zeros("sums", self.num_sums, self.num_slots * self.padded)
        self._add_weights()

    def _add_weights(self) -> None:
        """Make room for the packed weights."""
        num_panels, num_gates = self.padded // WIDTH, len(self.h_slots)
        in_panel = len(self.factors) + num_gates * (self.num_x + self.output_size)
        self.panels = self.scratch.zeros("panels", num_panels, in_panel * WIDTH)
        num_k = num_gates * self.padded
        self.back_panels = self.scratch.zeros("back_panels", num_panels, num_k, WIDTH)
        num_panels = in_vectors(self.num_x) // WIDTH
        self.x_panels = self.scratch.zeros("x_panels", num_panels, num_k, WIDTH)
        self.nothing = self.scratch.zeros("nothing", num_panels * WIDTH)
        self._set(
            num_panels=self.padded // WIDTH,
            hidden_size=self.output_size,
            num_x=self.num_x,
            weights=self.panels.ctypes.data,
            panel_bytes=self.panels.strides[0],
            first_weight=len(self.factors) * WIDTH * self.dtype.itemsize,
            back_weights=self.back_panels.ctypes.data,
            num_back=num_k,
        )

    def _set(self, **fields: int) -> None:
        for name, value in fields.items():
            self.memory[name] = value

    def initial_state(self, num_rows: int) -> State:
        """Return zeros, [B, H] each: the state of B new streams."""
        shape = (num_rows, self.output_size)
        return tuple(np.zeros(shape, self.dtype) for _ in range(1 + self.is_lstm))

    def read_parameters(self) -> None:
        """Take the parameters as they are now, for all chunks until the next call."""
        pack_forward(self.panels, *self.parameters, self.factors)
        self.has_back_panels = self.has_x_panels = False

    def begin(self, num_steps: int, num_rows: int, state: State) -> None:
        """Make ready for a chunk that starts from a state: h, and c of an LSTM, [B, H] each."""
        if (num_steps, num_rows) != self.shape:
            self._make_room(num_steps, num_rows)
        self.xh[0, :, self.h_start :] = 0.0
        self.h_before[0] = state[0]
        if self.is_lstm:
            self.c[0] = 0.0
            self.c[0, :, : self.output_size] = state[1]

    def _make_room(self, num_steps: int, num_rows: int) -> None:
        self.shape = (num_steps, num_rows)
        self.xh = self.scratch.get("xh", num_steps + 1, num_rows, self.h_start + self.padded)
        self.xh[:, :, self.h_start - 1] = 1.0
        self.x = self.xh[:-1, :, self.x_start : self.h_start - 1]
        h = self.xh[:, :, self.h_start : self.h_start + self.output_size]
        self.h_before, self.h = h[:-1], h[1:]
        self.gates = self.scratch.get("gates", num_steps, num_rows, self.num_slots * self.padded)
        self.c = self.scratch.get("c", (num_steps + 1) * self.is_lstm, num_rows, self.padded)
        self.tanh_c = self.scratch.get("tanh_c", num_steps * self.is_lstm, num_rows, self.padded)
        itemsize = self.dtype.itemsize
        self._set(
            num_rows=num_rows,
            num_steps=num_steps,
            xh=self.xh.ctypes.data + self.h_start * itemsize,
            xh_row_bytes=self.xh.strides[1],
            x_offset=(self.x_start - self.h_start) * itemsize,
            gates=self.gates.ctypes.data,
            c=self.c.ctypes.data,
            tanh_c=self.tanh_c.ctypes.data,
        )
        self.grad_h = self.x[:0]  # there is none yet
        self._has_room_back = False
        self._own_grad_h: Array | None = None
        self._back_to_x: RowProducts | None = None

    def _make_room_back(self) -> None:
        """Make ready what goes back through chunks of this shape."""
        self._has_room_back = True
        self.carried = self.scratch.zeros("carried", self.shape[1], self.padded)
        self._set(carried=self.carried.ctypes.data)
        gates = flat_rows(self.gates)
        xh = flat_rows(self.xh[:-1, :, self.x_start : self.h_start + self.output_size])
        self._outer = [
            OuterProducts(xh[:, rows], gates[:, columns], self.sums[rows, columns])
            for rows, columns in self._parts_of_sums()
        ]

    def _parts_of_sums(self) -> list[tuple[slice, slice]]:
        """Return which rows and columns of the sums over time are needed."""
        if self.cell != "gru":
            return [(slice(None), slice(None))]
        # r and z; n of what comes from h; n of what comes from x.
        return [
            (slice(None), slice(self.padded, 3 * self.padded)),
            (slice(self.num_x, None), slice(0, self.padded)),
            (slice(self.num_x + 1), slice(3 * self.padded, None)),
        ]

    def _room_for_grad(self) -> Array:
        """Return room for the gradient by h, [T, B, H], of which what pads is 0."""
        if self._own_grad_h is None:
            padded = self.scratch.zeros("grad_h", *self.shape, self.padded)
            self._own_grad_h = padded[:, :, : self.output_size]
        return self._own_grad_h

    def run(self, first_step: int, end_step: int, keeps: bool = True) -> None:
        """Compute some steps whose x is there."""
        call = passes.forward(self.cell, self.dtype.itemsize, keeps)
        share_rows(call, self.shape[1], 0, (self.address, first_step, end_step))

    def end(self) -> State:
        """Return the state after the last step, the caller's own."""
        h = self.h[-1].copy()
        return (h, self.c[-1, :, : self.output_size].copy()) if self.is_lstm else (h,)

    def kept(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return gates and states of the last chunk, [B, T, H] of float64, before the way back."""
        slots, size = GATES[self.cell], self.output_size
        gates = {
            name: self.gates[:, :, k * self.padded : k * self.padded + size]
            for k, name in enumerate(slots)
            if name
        }
        states = {"h": self.h} | ({"c": self.c[1:, :, :size]} if self.is_lstm else {})

        def by_row(values: dict[str, Array]) -> dict[str, Array]:
            return {k: value.swapaxes(0, 1).astype(np.float64) for k, value in values.items()}

        return by_row(gates), by_row(states)

    def begin_back(self, grad: Array | None, grad_after: State | None = None) -> None:
        """Make ready for the way back, with the loss's gradient by h and by the last state."""
        if not self._has_room_back:
            self._make_room_back()
        if grad is not self.grad_h:
            if grad is None or not grad.flags.c_contiguous or not is_in_vectors(grad):
                own = self._room_for_grad()
                own[...] = 0.0 if grad is None else grad
                grad = own
            self.grad_h = grad
            self._set(grad_h=grad.ctypes.data)
        self.carried[...] = 0.0
        if grad_after is not None:
            self.grad_h[-1] += grad_after[0]
            if self.is_lstm:
                self.carried[:, : self.output_size] = grad_after[1]
        if not self.has_back_panels:
            pack_backward(self.back_panels, self.parameters.hh, self.h_slots)
            self.has_back_panels = True

    def run_back(self, first_step: int, end_step: int) -> None:
        """Go back through some steps, those behind them being done."""
        call = passes.backward(self.cell, self.dtype.itemsize)
        share_rows(call, self.shape[1], 0, (self.address, first_step, end_step))

    def grad_x(self, first_step: int, end_step: int) -> Array:
        """Return the gradient by x, [T, B, I], of which some steps are set."""
        if not self.has_x_panels:
            pack_backward(self.x_panels, self.parameters.ih, self.x_slots - self.x_slots[0])
            self.has_x_panels = True
        num_rows = self.shape[1]
        if self._back_to_x is None:
            out = self.scratch.get("grad_x", *self.shape, len(self.nothing))
            self._grad_x = out[:, :, : self.num_x]
            rows = flat_rows(self.gates)[:, self.x_slots[0] :]
            self._back_to_x = RowProducts(rows, self.x_panels, self.nothing, flat_rows(out))
        self._back_to_x.run(first_step * num_rows, end_step * num_rows)
        return self._grad_x

    def grad_before(self) -> State:
        """Return the gradient by the state before step 0, all steps being run back."""
        by_h = self.scratch.get("grad_before", self.shape[1], self.padded)
        start = self.scratch.zeros("start", self.shape[1], self.padded)
        if self.cell == "gru":
            start[...] = self.carried
        RowProducts(self.gates[0], self.back_panels, start, by_h).run(0, self.shape[1])
        states = (by_h, self.carried) if self.is_lstm else (by_h,)
        return tuple(state[:, : self.output_size].copy() for state in states)

    def end_back(self, is_first: bool) -> None:
        """Sum up over time: rows of ``sums`` are of x, 1 and h."""
        if is_first:
            self.sums[...] = 0.0
        for part in self._outer:
            part.run()

    def set_gradients(self) -> None:
        """Set the gradients of the parameters to what was summed up."""
        bias_row, grads = self.num_x, self.gradients
        set_gradients(self.sums, grads.ih, grads.bias_ih, self.x_slots, 0, bias_row)
        set_gradients(self.sums, grads.hh, grads.bias_hh, self.h_slots, bias_row + 1, bias_row)
