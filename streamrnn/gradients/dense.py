"""Products of rows with a matrix, and a dense layer over a chunk of time and back."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from streamrnn.gradients import passes
from streamrnn.gradients.node import Part
from streamrnn.gradients.pack import add_gradients, pack_backward, pack_columns
from streamrnn.gradients.passes import OuterSum, Product
from streamrnn.gradients.scratch import Array, Scratch
from streamrnn.gradients.threads import share_rows
from streamrnn.kernels.vector_width import WIDTH

__all__ = ["Dense", "add_over_rows", "in_vectors", "multiply"]


def in_vectors(size: int) -> int:
    """Return a size rounded up to whole vectors."""
    return -(-size // WIDTH) * WIDTH


def multiply(rows: Array, panels: Array, start: Array, out: Array) -> None:
    """Set ``out = start + rows @ panels``, without BLAS.

    Parameters
    ----------
    rows : ndarray, shape (N, K or more)
        Contiguous within a row.
    panels : ndarray, shape (P, K, WIDTH)
        The matrix, `WIDTH` columns a panel.
    start : ndarray, shape (P * WIDTH,) or (N, P * WIDTH)
        Aligned, as ``out`` is.
    out : ndarray, shape (N, P * WIDTH)
        What is set.
    """
    made = np.zeros(1, Product.dtype)
    made["num_panels"], made["num_k"] = panels.shape[:2]
    made["weights"], made["panel_bytes"] = panels.ctypes.data, panels.strides[0]
    made["start"] = start.ctypes.data
    made["start_row_bytes"] = start.strides[0] if start.ndim > 1 else 0
    made["start_panel_bytes"] = WIDTH * start.itemsize
    made["rows"], made["row_bytes"] = rows.ctypes.data, rows.strides[0]
    made["out"], made["out_row_bytes"] = out.ctypes.data, out.strides[0]
    call = functools.partial(passes.product(rows.itemsize), made.ctypes.data)
    share_rows(call, len(rows))


def add_over_rows(a: Array, v: Array, sums: Array) -> None:
    """Add ``a.T @ v``, the rows one after the other, to ``sums``.

    ``a`` is [N, R]; ``v`` [N, whole vectors], aligned, as ``sums`` is, [R, as many].
    """
    made = np.zeros(1, OuterSum.dtype)
    made["num_vectors"], made["num_k"] = v.shape[1] // WIDTH, len(a)
    made["a"], made["a_row_bytes"] = a.ctypes.data, a.strides[0]
    made["v"], made["v_row_bytes"] = v.ctypes.data, v.strides[0]
    made["out"], made["out_row_bytes"] = sums.ctypes.data, sums.strides[0]
    call = functools.partial(passes.outer_sum(a.itemsize), made.ctypes.data)
    share_rows(call, len(sums))


def flat_rows(steps: Array) -> Array:
    """Return [T, B, N] as [T * B, N], without a copy; there is one stride from row to row."""
    num_steps, num_rows, size = steps.shape
    shape, strides = (num_steps * num_rows, size), (steps.strides[1], steps.strides[2])
    return np.lib.stride_tricks.as_strided(steps, shape, strides)


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
        self.padded = in_vectors(self.output_size)
        self.panels = self.scratch.zeros("panels", self.padded // WIDTH, self.num_x, WIDTH)
        num_panels = in_vectors(self.num_x) // WIDTH
        self.back_panels = self.scratch.zeros("back", num_panels, self.output_size, WIDTH)
        self.biases = self.scratch.zeros("biases", self.padded)
        self.nothing = self.scratch.zeros("nothing", num_panels * WIDTH)
        self.slots = np.zeros(1, np.int64)

    def begin(self, num_steps: int, num_rows: int) -> None:
        """Make ready for a chunk."""
        self.shape = (num_steps, num_rows)
        self.all_z = self.scratch.get("z", num_steps, num_rows, self.padded)
        self.z = self.all_z[:, :, : self.output_size]
        pack_columns(self.panels, self.weight)
        self.biases[: self.output_size] = self.bias

    def take(self, parts: Sequence[Part]) -> None:
        """Fill columns of x; what is all of it is kept by reference."""
        if len(parts) == 1:
            x = parts[0][1]
            of_rows = x.itemsize, x.strides[1] * x.shape[1]
            if x.shape[2] == self.num_x and (x.strides[2], x.strides[0]) == of_rows:
                self.x = x
                return
        self.x = self.scratch.get("x", *self.shape, self.num_x)
        for columns, values in parts:
            self.x[..., columns] = values

    def run(self, first_step: int, end_step: int) -> None:
        """Compute some steps."""
        out = flat_rows(self.all_z[first_step:end_step])
        multiply(flat_rows(self.x[first_step:end_step]), self.panels, self.biases, out)

    def begin_back(self, grad: Array | None) -> None:
        """Take the gradient by z."""
        self.all_grad_z = self.scratch.zeros("grad_z", *self.shape, self.padded)
        self.grad_z = self.all_grad_z[:, :, : self.output_size]
        if grad is not None:
            self.grad_z[...] = grad
        pack_backward(self.back_panels, self.weight, self.slots)

    def grad_x(self, first_step: int, end_step: int) -> Array:
        """Return the gradient by x of some steps, valid until the next call."""
        num_steps = end_step - first_step
        out = self.scratch.get("grad_x", num_steps, self.shape[1], len(self.nothing))
        rows = flat_rows(self.all_grad_z[first_step:end_step])
        multiply(rows, self.back_panels, self.nothing, flat_rows(out))
        return out[:, :, : self.num_x]

    def end_back(self) -> None:
        """Add to the gradients of the parameters."""
        sums = self.scratch.zeros("sums", self.num_x + 1, self.padded)
        grad_z = flat_rows(self.all_grad_z)
        add_over_rows(flat_rows(self.x), grad_z, sums[:-1])
        np.add.reduce(grad_z, axis=0, out=sums[-1])
        add_gradients(sums, self.grad_weight, self.grad_bias, self.slots, 0, self.num_x)
