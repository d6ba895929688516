"""Parameters in PyTorch's order and shapes, packed into the panels that the tiles read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamrnn.kernels.simd_width import WIDTH
from streamrnn.kernels.tiles import SHAPES

__all__ = ["aligned_floats", "pack", "padded"]

_ALIGNMENT_BYTES = 64
_UNIT_MULTIPLE = 16  # of every padded size, whatever the vector width: rows look alike everywhere


def padded(size: int) -> int:
    """Return the number of floats that a vector of ``size`` takes in a row: a multiple of 16.

    Parameters
    ----------
    size : int
        Elements that count.

    Returns
    -------
    int
    """
    return -(-size // _UNIT_MULTIPLE) * _UNIT_MULTIPLE


def aligned_floats(size: int) -> NDArray[np.float32]:
    """Return ``size`` zeroed float32 that start at a multiple of 64 bytes.

    Parameters
    ----------
    size : int
        Number of elements.

    Returns
    -------
    ndarray of float32, shape (size,)
    """
    memory = np.zeros(4 * size + _ALIGNMENT_BYTES, dtype=np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT_BYTES
    return memory[start : start + 4 * size].view(np.float32)


def pack(
    kind: int,
    biases: Sequence[NDArray[np.float64]],
    x_weights: NDArray[np.float64],
    h_weights: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Pack one layer.

    Padding units have zero weights and biases: they stay exactly 0 in every cell.

    Parameters
    ----------
    kind : int
        Of the tile: `DENSE`, `GRU` or `LSTM`.
    biases : sequence of ndarray, shape (H,)
        One for each accumulator.
    x_weights : ndarray, shape (G * H, I)
        Gates in the tile's order.
    h_weights : ndarray, shape (G * H, H_in)
        Likewise; H_in is 0 for a head.

    Returns
    -------
    ndarray of float32
        [panel][bias vectors, x vectors (k, gate), h vectors (k, gate)][WIDTH], 64-byte aligned.
    """
    shape = SHAPES[kind]
    hidden_size = len(biases[0])
    num_panels = padded(hidden_size) // WIDTH

    def by_panel(matrix: NDArray[np.float64], accumulators: Sequence[int]) -> NDArray[np.float64]:
        """[G * H, K] -> [panel, K, G, WIDTH]."""
        factors = np.array([shape.factors[a] for a in accumulators])
        gates = matrix.reshape(len(accumulators), hidden_size, -1) * factors[:, None, None]
        full = np.zeros((len(accumulators), num_panels * WIDTH, gates.shape[2]))
        full[:, :hidden_size] = gates
        return full.reshape(len(accumulators), num_panels, WIDTH, -1).transpose(1, 3, 0, 2)

    parts = (
        by_panel(np.concatenate(biases)[:, None], range(shape.num_accumulators)),
        by_panel(x_weights, shape.x_gates),
        by_panel(h_weights, shape.h_gates),
    )
    panels = np.concatenate([part.reshape(num_panels, -1) for part in parts], axis=1)
    packed = aligned_floats(panels.size)
    packed[:] = panels.reshape(-1)
    return packed
