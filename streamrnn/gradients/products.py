"""Products of rows with a matrix, and sums of outer products over rows, without BLAS.

One is made once for its arrays, and then run as often as they are filled.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from streamrnn.gradients import passes
from streamrnn.gradients.passes import OuterSum, Product
from streamrnn.gradients.scratch import Array
from streamrnn.gradients.threads import share_rows
from streamrnn.kernels.structs import Struct
from streamrnn.kernels.vector_width import WIDTH

__all__ = ["OuterProducts", "RowProducts", "flat_rows", "in_vectors", "is_in_vectors"]


def in_vectors(size: int) -> int:
    """Return a size rounded up to whole vectors."""
    return -(-size // WIDTH) * WIDTH


def flat_rows(steps: Array) -> Array:
    """Return [T, B, N] as [T * B, N]: a view, where there is one stride from row to row."""
    return steps.reshape(-1, steps.shape[2])


def is_in_vectors(x: Array) -> bool:
    """Tell whether rows [T, B, N] are whole aligned vectors, with one stride from row to row."""
    vector_bytes = WIDTH * x.itemsize
    return (
        x.strides[2] == x.itemsize
        and x.strides[0] == x.strides[1] * x.shape[1]
        and not (x.shape[2] % WIDTH or x.strides[1] % vector_bytes or x.ctypes.data % 64)
    )


def _struct(kind: type[Struct], *values: int) -> tuple[Any, int]:
    memory = np.array(values, kind.dtype)
    return memory, memory.ctypes.data


class RowProducts:
    """``out = start + rows @ panels``.

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

    def __init__(self, rows: Array, panels: Array, start: Array, out: Array) -> None:
        self._arrays = rows, panels, start, out  # which the struct only points to
        self._struct, address = _struct(
            Product,
            *panels.shape[:2],
            panels.ctypes.data,
            panels.strides[0],
            start.ctypes.data,
            start.strides[0] if start.ndim > 1 else 0,
            WIDTH * start.itemsize,
            rows.ctypes.data,
            rows.strides[0],
            out.ctypes.data,
            out.strides[0],
        )
        self._call, self._arguments = passes.product(rows.itemsize), (address,)

    def run(self, first_row: int, end_row: int) -> None:
        """Compute some rows."""
        share_rows(self._call, end_row, first_row, self._arguments)


class OuterProducts:
    """``sums += a.T @ v``, the rows one after the other.

    ``a`` is [N, R]; ``v`` [N, whole vectors], aligned, as ``sums`` is, [R, as many].
    """

    def __init__(self, a: Array, v: Array, sums: Array) -> None:
        self._arrays = a, v, sums
        places = (place for each in (a, v, sums) for place in (each.ctypes.data, each.strides[0]))
        self._struct, address = _struct(OuterSum, v.shape[1] // WIDTH, len(a), *places)
        self._call, self._arguments = passes.outer_sum(a.itemsize), (address,)
        self._num_rows = len(sums)

    def run(self) -> None:
        """Add them."""
        share_rows(self._call, self._num_rows, 0, self._arguments)
