"""Parameters in PyTorch's order, packed for the tiles; sums over time, unpacked into gradients.

Arrays are C-contiguous and of one float type. What pads a panel is 0 and stays so.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn.kernels.vector_width import WIDTH

__all__ = ["pack_backward", "pack_columns", "pack_forward", "set_gradients"]

_WIDTH = WIDTH


@jit
def pack_forward(panels, weight_ih, weight_hh, bias_ih, bias_hh, factors) -> None:
    """Pack a layer for the forward tiles, as `streamrnn.kernels.cpu.pack` does.

    ``panels`` is [P, ...]: of each the biases of its sums, and for each k of x, then of h, one
    vector a gate. ``factors`` [G] multiply each sum. A GRU has two sums for n, which is last.
    """
    size = weight_hh.shape[1]
    num_gates = weight_hh.shape[0] // size
    num_sums = len(factors)
    for p in range(len(panels)):
        first = p * _WIDTH
        units = min(_WIDTH, size - first)
        panel = panels[p]
        for gate in range(num_sums):
            row = min(gate, num_gates - 1) * size + first
            for u in range(units):
                bias = bias_hh[row + u] if gate >= num_gates else bias_ih[row + u]
                if num_sums == num_gates or gate < num_gates - 1:
                    bias += bias_hh[row + u]
                panel[gate * _WIDTH + u] = bias * factors[gate]
        at = num_sums * _WIDTH
        for weights in (weight_ih, weight_hh):
            for k in range(weights.shape[1]):
                for gate in range(num_gates):
                    for u in range(units):
                        row = gate * size + first + u
                        panel[at + u] = weights[row, k] * factors[gate]
                    at += _WIDTH


@jit
def pack_backward(panels, weights, slots) -> None:
    """Pack a matrix [G * H, N] for products along the rows of gates.

    ``panels`` is [N in panels, K, WIDTH]; the rows of gate g begin at k ``slots[g]``.
    """
    size = weights.shape[0] // len(slots)
    for p in range(len(panels)):
        first = p * _WIDTH
        columns = min(_WIDTH, weights.shape[1] - first)
        for gate in range(len(slots)):
            for u in range(size):
                for j in range(columns):
                    panels[p, slots[gate] + u, j] = weights[gate * size + u, first + j]


@jit
def pack_columns(panels, weights) -> None:
    """Pack a matrix [O, K], for products of rows of K: ``panels`` is [O in panels, K, WIDTH]."""
    for p in range(len(panels)):
        first = p * _WIDTH
        for k in range(weights.shape[1]):
            for u in range(min(_WIDTH, len(weights) - first)):
                panels[p, k, u] = weights[first + u, k]


@jit
def set_gradients(sums, gradient, grad_bias, slots, first_row, bias_row) -> None:
    """Set the gradients of a matrix and of its bias to what was summed over time, [rows, K].

    The matrix [G * H, N] gets the rows from ``first_row`` on, the bias [G * H] its own one. Gate g
    begins at k ``slots[g]``.
    """
    size = gradient.shape[0] // len(slots)
    for gate in range(len(slots)):
        for u in range(size):
            grad_bias[gate * size + u] = sums[bias_row, slots[gate] + u]
    for gate in range(len(slots)):
        for first in range(0, size, 16):
            units = min(16, size - first)
            for j in range(gradient.shape[1]):
                for u in range(first, first + units):
                    gradient[gate * size + u, j] = sums[first_row + j, slots[gate] + u]
