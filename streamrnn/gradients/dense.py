"""Products of rows with a matrix, and a dense layer over a chunk of time and back."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from streamrnn.gradients import passes
from streamrnn.gradients.node import Part
from streamrnn.gradients.pack import pack_backward, pack_columns
from streamrnn.gradients.passes import OuterSum, Product
from streamrnn.gradients.scratch import Array, Scratch
from streamrnn.gradients.threads import share_rows
from streamrnn.kernels.vector_width import WIDTH

__all__ = ["Dense", "add_over_rows", "flat_rows", "in_vectors", "is_in_vectors", "multiply"]


def address_of(array: Array) -> int:
    """Return where an array lies, in half the time that ``array.ctypes.data`` takes."""
    address: int = array.__array_interface__["data"][0]
    return address


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
    start_row_bytes = start.strides[0] if start.ndim > 1 else 0
    made = np.array(
        (
            *panels.shape[:2],
            address_of(panels),
            panels.strides[0],
            address_of(start),
            start_row_bytes,
            WIDTH * start.itemsize,
            address_of(rows),
            rows.strides[0],
            address_of(out),
            out.strides[0],
        ),
        Product.dtype,
    )
    call = functools.partial(passes.product(rows.itemsize), address_of(made))
    share_rows(call, len(rows))


def add_over_rows(a: Array, v: Array, sums: Array) -> None:
    """Add ``a.T @ v``, the rows one after the other, to ``sums``.

    ``a`` is [N, R]; ``v`` [N, whole vectors], aligned, as ``sums`` is, [R, as many].
    """
    places = (place for each in (a, v, sums) for place in (address_of(each), each.strides[0]))
    made = np.array((v.shape[1] // WIDTH, len(a), *places), OuterSum.dtype)
    call = functools.partial(passes.outer_sum(a.itemsize), address_of(made))
    share_rows(call, len(sums))


def flat_rows(steps: Array) -> Array:
    """Return [T, B, N] as [T * B, N]: a view, where there is one stride from row to row."""
    return steps.reshape(-1, steps.shape[2])


def is_in_vectors(x: Array) -> bool:
    """Tell whether rows [T, B, N] are whole aligned vectors, with one stride from row to row."""
    vector_bytes = WIDTH * x.itemsize
    return (
        x.strides[2] == x.itemsize
        and x.strides[0] == x.strides[1] * x.shape[1]
        and not (x.shape[2] % WIDTH or x.strides[1] % vector_bytes or address_of(x) % 64)
    )


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
        in_row = 2 * self.padded + 2 * in_vectors(self.num_x)
        self.bytes_a_step = in_row * self.dtype.itemsize
        self.one = np.ones((1, 1), self.dtype)
        self.slots = np.zeros(1, np.int64)

    def read_parameters(self) -> None:
        """Take the parameters as they are now, for all chunks until the next call."""
        pack_columns(self.panels, self.weight)
        pack_backward(self.back_panels, self.weight, self.slots)
        self.biases[: self.output_size] = self.bias

    def begin(self, num_steps: int, num_rows: int) -> None:
        """Make ready for a chunk."""
        self.shape = (num_steps, num_rows)
        self.all_z = self.scratch.get("z", num_steps, num_rows, self.padded)
        self.z = self.all_z[:, :, : self.output_size]

    def take(self, parts: Sequence[Part]) -> None:
        """Fill columns of x; what is all of it is kept by reference."""
        if len(parts) == 1:
            x = parts[0][1]
            if x.shape[2] == self.num_x and is_in_vectors(x):
                self.x = self.all_x = x
                return
        self.all_x = self.scratch.get("x", *self.shape, in_vectors(self.num_x))
        self.x = self.all_x[:, :, : self.num_x]
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

    def grad_x(self, first_step: int, end_step: int) -> Array:
        """Return the gradient by x of some steps, valid until the next call."""
        num_steps = end_step - first_step
        out = self.scratch.get("grad_x", num_steps, self.shape[1], len(self.nothing))
        rows = flat_rows(self.all_grad_z[first_step:end_step])
        multiply(rows, self.back_panels, self.nothing, flat_rows(out))
        return out[:, :, : self.num_x]

    def end_back(self, is_first: bool) -> None:
        """Sum up over time what the gradients are made of, to the last chunk's or anew."""
        x, grad_z = flat_rows(self.all_x), flat_rows(self.all_grad_z)
        # The matrix the way that takes fewer vectors: [O, I] or [I, O].
        by_output = self.output_size * x.shape[1] < self.num_x * self.padded
        shape = (self.output_size, x.shape[1]) if by_output else (self.num_x, self.padded)
        sums, by_bias = self.scratch.get("sums", *shape), self.scratch.get("by_bias", self.padded)
        if is_first:
            sums[...] = by_bias[...] = 0.0
        add_over_rows(*((grad_z, x) if by_output else (x, grad_z)), sums)
        add_over_rows(np.broadcast_to(self.one, (len(grad_z), 1)), grad_z, by_bias[None])
        self.sums = sums[:, : self.num_x] if by_output else sums[:, : self.output_size].T
        self.by_bias = by_bias[: self.output_size]

    def set_gradients(self) -> None:
        """Set the gradients of the parameters to what was summed up."""
        self.grad_weight[...], self.grad_bias[...] = self.sums, self.by_bias
