"""A dense layer over a chunk of time and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamrnn.gradients.node import Part
from streamrnn.gradients.pack import pack_backward, pack_columns
from streamrnn.gradients.products import (
    OuterProducts,
    RowProducts,
    flat_rows,
    in_vectors,
    is_in_vectors,
)
from streamrnn.gradients.scratch import Array, Scratch
from streamrnn.kernels.vector_width import WIDTH

__all__ = ["Dense"]


class Dense:
    """``z = W x + b`` over a chunk of time, and back, as a `Node` is run.

    Attributes
    ----------
    z : ndarray, shape (T, B, O)
    grad_z : ndarray, shape (T, B, O)
        The loss's gradient by z: others may add to it until that step is run back.
    """

    def __init__(self, weight: Array, bias: Array, grad_weight: Array, grad_bias: Array) -> None:
        self.output_size, self.num_x = weight.shape
        self.dtype = weight.dtype
        self.scratch = Scratch(self.dtype)
        self.weight, self.bias = weight, bias
        self.grad_weight, self.grad_bias = grad_weight, grad_bias
        self.padded, num_in = in_vectors(self.output_size), in_vectors(self.num_x)
        self.panels = self.scratch.zeros("panels", self.padded // WIDTH, self.num_x, WIDTH)
        self.back_panels = self.scratch.zeros("back", num_in // WIDTH, self.output_size, WIDTH)
        self.biases = self.scratch.zeros("biases", self.padded)
        self.nothing = self.scratch.zeros("nothing", num_in)
        self.bytes_a_step = 2 * (self.padded + num_in) * self.dtype.itemsize
        self.one = np.ones((1, 1), self.dtype)
        self.slots = np.zeros(1, np.int64)
        # The gradient of the matrix the way that takes fewer vectors: [O, I] or [I, O].
        self.by_output = self.output_size * num_in < self.num_x * self.padded
        shape = (self.output_size, num_in) if self.by_output else (self.num_x, self.padded)
        self.sums = self.scratch.zeros("sums", *shape)
        self.by_bias = self.scratch.zeros("by_bias", 1, self.padded)
        self.shape = (0, 0)

    def read_parameters(self) -> None:
        """Take the parameters as they are now, for all chunks until the next call."""
        pack_columns(self.panels, self.weight)
        pack_backward(self.back_panels, self.weight, self.slots)
        self.biases[: self.output_size] = self.bias

    def begin(self, num_steps: int, num_rows: int) -> None:
        """Make ready for a chunk."""
        if (num_steps, num_rows) != self.shape:
            self._make_room(num_steps, num_rows)

    def _make_room(self, num_steps: int, num_rows: int) -> None:
        self.shape = (num_steps, num_rows)
        all_z = self.scratch.get("z", *self.shape, self.padded)
        self.z, self._z_rows = all_z[:, :, : self.output_size], flat_rows(all_z)
        self.x = self.z[:0]  # there is none yet
        self._has_room_back = False

    def rows(self) -> tuple[Array, Array]:
        """Return z and the gradient by it, which may be filled, [T * B, O or more] each."""
        if not self._has_room_back:
            self._make_room_back()
        return self._z_rows, self._grad_rows

    def _make_room_back(self) -> None:
        all_grad_z = self.scratch.zeros("grad_z", *self.shape, self.padded)
        self.grad_z = all_grad_z[:, :, : self.output_size]
        grad_x = self.scratch.get("grad_x", *self.shape, len(self.nothing))
        self._grad_x = grad_x[:, :, : self.num_x]
        self._grad_rows = rows = flat_rows(all_grad_z)
        self._back = RowProducts(rows, self.back_panels, self.nothing, flat_rows(grad_x))
        ones = np.broadcast_to(self.one, (len(rows), 1))
        self._sum_bias = OuterProducts(ones, rows, self.by_bias)
        pair = (rows, self._x_rows)
        self._sum_weight = OuterProducts(*(pair if self.by_output else pair[::-1]), self.sums)
        self._has_room_back = True

    def take(self, parts: Sequence[Part]) -> None:
        """Fill columns of x; what is all of it is kept by reference."""
        first = parts[0][1] if len(parts) == 1 else self.z
        if first is self.x:
            return
        if len(parts) == 1 and first.shape[2] == self.num_x and is_in_vectors(first):
            self._read(first, first)
            return
        all_x = self.scratch.get("x", *self.shape, in_vectors(self.num_x))
        self._read(all_x[:, :, : self.num_x], all_x)
        for columns, values in parts:
            self.x[..., columns] = values

    def _read(self, x: Array, all_x: Array) -> None:
        """Let the products read x, which is all but what pads its rows."""
        self.x, self._x_rows, self._has_room_back = x, flat_rows(all_x), False
        self._forward = RowProducts(self._x_rows, self.panels, self.biases, self._z_rows)

    def run(self, first_step: int, end_step: int) -> None:
        """Compute some steps."""
        num_rows = self.shape[1]
        self._forward.run(first_step * num_rows, end_step * num_rows)

    def begin_back(self, grad: Array | None) -> None:
        """Take the gradient by z; `grad_z` itself may have been filled."""
        self.rows()
        if grad is not self.grad_z:
            self.grad_z[...] = 0.0 if grad is None else grad

    def grad_x(self, first_step: int, end_step: int) -> Array:
        """Return the gradient by x, [T, B, I], of which some steps are set."""
        num_rows = self.shape[1]
        self._back.run(first_step * num_rows, end_step * num_rows)
        return self._grad_x

    def end_back(self, is_first: bool) -> None:
        """Sum up over time what the gradients are made of, to the last chunk's or anew."""
        if is_first:
            self.sums[...] = self.by_bias[...] = 0.0
        self._sum_weight.run()
        self._sum_bias.run()

    def set_gradients(self) -> None:
        """Set the gradients of the parameters to what was summed up."""
        sums = self.sums if self.by_output else self.sums.T
        self.grad_weight[...] = sums[: self.output_size, : self.num_x]
        self.grad_bias[...] = self.by_bias[0, : self.output_size]
